"""Methods of the benchmarks as workflows, marked for `host.py evaluate` by their nodes' titles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .edits import CLIP_VISION
from .graph import Graph, Node, Output
from .parts import DEMO, SD15, Kit, reword

PIX2PIX = Kit("InstructPix2Pix", "", "", 512, {
    "name": "instruct-pix2pix-00-22000.safetensors",
    "url": "https://huggingface.co/timbrooks/instruct-pix2pix/resolve/main/"
    "instruct-pix2pix-00-22000.safetensors?download=true",
    "directory": "checkpoints",
})  # fmt: skip
SOURCE = "a red circle on a plain blue background"
TARGET = reword(SOURCE, "red", "green")
STRENGTH = 0.6  # of SDEdit: how much of the noise is added
MASACTRL_START = 0.08  # the published step 4 of 50


@dataclass
class Bench:
    """The beginning of every method. settings: what the methods of a family share."""

    graph: Graph
    loader: Node
    image: Output
    latent: Output
    settings: dict[str, Any]


SETTINGS = {
    DEMO.label: {"cfg": 4.0, "cross_replace": 0.6, "self_replace": 0.4},  # as Scenes-Bench has them
    SD15.label: {  # as PIE-Bench's papers do; low: of EDICT and InfEdit
        "cfg": 7.5, "low": 3.0, "cross_replace": 0.4, "self_replace": 0.6,
    },
    PIX2PIX.label: {"cfg": 7.5, "image_cfg": 1.5},
}


def begin(graph: Graph, kit: Kit) -> Bench:
    """Draw picture and model."""
    with graph.group("1  Picture and model"):
        if kit.checkpoint:
            loader = graph.add(
                "CheckpointLoaderSimple", models=[kit.checkpoint], ckpt_name=kit.checkpoint["name"]
            )
        else:
            loader = graph.add("RetraceDemoModel")
        image = graph.add("LoadImage", "input:image", image="example.png").image
        image = graph.add(
            "ImageScale", "Crop to the model's size", image=image, upscale_method="lanczos",
            width=kit.size, height=kit.size, crop="center",
        ).image  # fmt: skip
        latent = graph.add("VAEEncode", pixels=image, vae=loader.vae).latent
    return Bench(graph, loader, image, latent, SETTINGS[kit.label])


def finish(bench: Bench, samples: Output) -> None:
    """Draw what shows the edit."""
    with bench.graph.group("4  The edit"):
        image = bench.graph.add("VAEDecode", samples=samples, vae=bench.loader.vae).image
        bench.graph.add("PreviewImage", "output:edited", images=image)


def encode(bench: Bench, title: str, text: Any) -> Output:
    """Draw an encoded prompt."""
    return bench.graph.add(
        "CLIPTextEncode", title, clip=bench.loader.clip, text=text
    ).conditioning  # fmt: skip


def sdedit(bench: Bench) -> None:
    """Draw image to image: noise added to the picture, removed under the target prompt."""
    with bench.graph.group("2  Prompts"):
        positive = encode(bench, "input:target", TARGET)
        negative = encode(bench, "Negative prompt", "")
    with bench.graph.group("3  SDEdit"):
        samples = bench.graph.add(
            "KSampler", model=bench.loader.model, positive=positive, negative=negative,
            latent_image=bench.latent, seed=1234, steps=50, cfg=bench.settings["cfg"],
            sampler_name="ddim", scheduler="normal", denoise=STRENGTH,
        ).latent  # fmt: skip
    finish(bench, samples)


def instruct_pix2pix(bench: Bench) -> None:
    """Draw InstructPix2Pix with its two scales, through the host's own nodes."""
    graph = bench.graph
    with graph.group("2  Instruction"):
        positive = encode(bench, "input:instruction", "make the circle green")
        negative = encode(bench, "Empty prompt", "")
        both = graph.add(
            "InstructPixToPixConditioning", positive=positive, negative=negative,
            vae=bench.loader.vae, pixels=bench.image,
        )  # fmt: skip
    with graph.group("3  InstructPix2Pix"):
        guider = graph.add(
            "DualCFGGuider", model=bench.loader.model, cond1=both.positive, cond2=both.negative,
            negative=negative, cfg_conds=bench.settings["cfg"],
            cfg_cond2_negative=bench.settings["image_cfg"],
        ).guider  # fmt: skip
        noise = graph.add("RandomNoise", noise_seed=1234).noise
        sampler = graph.add("KSamplerSelect", sampler_name="euler_ancestral").sampler
        sigmas = graph.add(
            "BasicScheduler", model=bench.loader.model, scheduler="normal", steps=100
        ).sigmas
        samples = graph.add(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
            latent_image=both.latent,
        ).output  # fmt: skip
    finish(bench, samples)


@dataclass(frozen=True)
class Inverted:
    """A method that inverts the source and samples the target under a controller.

    source: "free", "pinned" (Direct Inversion), "null" (null-text), "negative" (negative prompt),
    "style" (StyleDiffusion), or an inversion that is none of DDIM's: "dpm", "edict", "noises"
    (edit-friendly), "ledits", "virtual". skipped: first steps that the edit leaves out.
    """

    source: str = "free"
    control: str = ""
    skipped: int = 0

    def __call__(self, bench: Bench) -> None:
        """Draw it."""
        graph = bench.graph
        with graph.group("2  Prompts", 380):
            text = graph.add("PrimitiveStringMultiline", "input:source", value=SOURCE).string
            source = encode(bench, "Source prompt", text)
            pair = graph.add("RetracePromptPair", "input:target", clip=bench.loader.clip,
                             source=text, target=TARGET)  # fmt: skip
            negative = encode(bench, "Negative prompt", "")
        with graph.group("3  Retrace and edit"):
            trajectory = self.invert(bench, source, negative)
            positive = pair.target
            if self.control == "pix2pix-zero":
                positive = direction(bench, source)
            samples = graph.add(
                "RetraceEditSampler", model=self.controlled(bench, pair), trajectory=trajectory,
                positive=positive, negative=negative, cfg=self.cfg(bench),
                start_step=self.skipped,
                reconstruct=self.control != "" and self.source != "pinned",
            ).edited  # fmt: skip
        finish(bench, samples)

    def cfg(self, bench: Bench) -> float:
        """Return the cfg of the edit."""
        low = bench.settings.get("low", bench.settings["cfg"])
        return low if self.source in ("edict", "virtual") else bench.settings["cfg"]

    def invert(self, bench: Bench, source: Output, negative: Output) -> Output:
        """Draw the inversion."""
        graph = bench.graph
        if self.source in OTHERS:
            kind, given = OTHERS[self.source]
            if self.source == "edict":
                given = given | {"cfg": self.cfg(bench), "negative": negative}
            return graph.add(
                kind, model=bench.loader.model, positive=source, latent=bench.latent, **given
            ).trajectory  # fmt: skip
        regularise = {"regularise": "fixed"} if self.control == "pix2pix-zero" else {}
        trajectory = graph.add(
            "RetraceInvertDDIM", model=bench.loader.model, positive=source, latent=bench.latent,
            steps=50, **regularise,
        ).trajectory  # fmt: skip
        if self.source == "pinned":
            return graph.add("RetraceInvertDirectInversion", trajectory=trajectory).trajectory
        if self.source == "null":
            return graph.add(
                "RetraceInvertNullText", model=bench.loader.model, trajectory=trajectory,
                negative=negative, cfg=bench.settings["cfg"],
            ).trajectory  # fmt: skip
        if self.source == "negative":
            return graph.add(
                "RetraceInvertNegativePrompt", trajectory=trajectory, negative=negative
            ).trajectory
        if self.source == "style":
            return learned(bench, trajectory, negative)
        return trajectory

    def controlled(self, bench: Bench, pair: Node) -> Output:
        """Draw the controller; return its model."""
        graph, model = bench.graph, bench.loader.model
        if self.control in ("p2p", "proximal p2p"):
            windows = {name: bench.settings[name] for name in ("cross_replace", "self_replace")}
            if self.control == "proximal p2p":
                model = graph.add("RetraceProximalGuidance", model=model).model
            return graph.add(
                "RetraceP2PController", model=model, prompts=pair.prompts, **windows
            ).model
        if self.control == "unified":
            return graph.add("RetraceUACController", model=model, prompts=pair.prompts).model
        if self.control == "sparse":
            return graph.add("RetraceSparseGuidance", model=model, prompts=pair.prompts).model
        if self.control == "masactrl":
            return graph.add(
                "RetraceMasaCtrlController", model=model, start_step=MASACTRL_START
            ).model
        if self.control == "pnp":
            return graph.add("RetracePnPController", model=model).model
        if self.control == "pix2pix-zero":
            return graph.add("RetraceXAttnGuidance", model=model).model
        return model


def learned(bench: Bench, trajectory: Output, negative: Output) -> Output:
    """Draw StyleDiffusion: shorter training on the demo model, whose image encoder is untrained."""
    graph = bench.graph
    if bench.loader.type == "RetraceDemoModel":
        vision = graph.add("RetraceDemoVision").clip_vision
        training = {"inner_steps": 10, "start": "identity"}
    else:
        vision = graph.add(
            "CLIPVisionLoader", models=[CLIP_VISION], clip_name=CLIP_VISION["name"]
        ).clip_vision
        training = {}
    trained = graph.add(
        "RetraceInvertStyleDiffusion", model=bench.loader.model, trajectory=trajectory,
        negative=negative, clip_vision=vision, image=bench.image, cfg=bench.settings["cfg"],
        **training,
    ).trajectory  # fmt: skip
    return graph.add("RetraceStyleDiffusionWindow", trajectory=trained).trajectory


def direction(bench: Bench, source: Output) -> Output:
    """Draw pix2pix-zero's direction from one prompt to the other, as PnPInversion has it."""
    return bench.graph.add(
        "RetraceEditDirection", "input:source_sentences input:target_sentences",
        clip=bench.loader.clip, conditioning=source, source_sentences=SOURCE,
        target_sentences=TARGET,
    ).conditioning  # fmt: skip


BOTH = (DEMO, SD15)
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm": ("RetraceInvertDPMSolver", {"steps": 30}),
    "edict": ("RetraceInvertEDICT", {"steps": 50}),
    "noises": ("RetraceInvertEditFriendly", {"steps": 50}),
    "ledits": ("RetraceInvertEditFriendly", {"steps": 25, "solver": "sde-dpmpp-2", "skip": 0.3}),
    "virtual": ("RetraceVirtualInversion", {"steps": 12}),
}
METHODS: dict[str, tuple[Callable[[Bench], None], tuple[Kit, ...]]] = {
    "sdedit": (sdedit, BOTH),
    "instruct_pix2pix": (instruct_pix2pix, (PIX2PIX,)),
    "ddim": (Inverted(), BOTH),
    "ddim_p2p": (Inverted(control="p2p"), BOTH),
    "null_text_p2p": (Inverted("null", "p2p"), BOTH),
    "negative_prompt_p2p": (Inverted("negative", "p2p"), BOTH),
    "proximal_p2p": (Inverted("negative", "proximal p2p"), BOTH),
    "style_diffusion_p2p": (Inverted("style", "p2p"), BOTH),
    "direct_p2p": (Inverted("pinned", "p2p"), BOTH),
    "dpm_solver_p2p": (Inverted("dpm", "p2p"), BOTH),
    "edict_p2p": (Inverted("edict", "p2p"), BOTH),
    "edit_friendly_p2p": (Inverted("noises", "p2p", skipped=12), BOTH),
    "ledits": (Inverted("ledits", "sparse"), BOTH),
    "infedit_p2p": (Inverted("virtual", "p2p"), BOTH),
    "infedit": (Inverted("virtual", "unified"), BOTH),
    "ddim_masactrl": (Inverted(control="masactrl"), BOTH),
    "direct_masactrl": (Inverted("pinned", "masactrl"), BOTH),
    "ddim_pnp": (Inverted(control="pnp"), BOTH),
    "direct_pnp": (Inverted("pinned", "pnp"), BOTH),
    "ddim_pix2pix_zero": (Inverted(control="pix2pix-zero"), BOTH),
    "direct_pix2pix_zero": (Inverted("pinned", "pix2pix-zero"), BOTH),
}


def draw_methods(info: dict[str, Any], pack: str, version: str) -> dict[str, dict[str, Any]]:
    """Return file name -> workflow as the page saves it."""
    drawn = {}
    for name, (build, kits) in METHODS.items():
        for kit in kits:
            graph = Graph(f"evaluation/{name}{kit.suffix}", info, pack, version)
            build(begin(graph, kit))
            drawn[f"{name}{kit.suffix}.json"] = graph.to_json()
    return drawn
