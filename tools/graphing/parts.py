"""Parts that the workflows share: what they begin with, the edit, and what they show."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .graph import Graph, Node, Output

NOTE = """# {title}

{what}

**Run it**: {run}

**Then change**
{change}

**What to expect**: {expect}
"""


def reword(text: str, old: str, new: str) -> str:
    """Replace whole words in a text: "red" is not in "checkered".

    Raises: ValueError if the words are not there.
    """
    changed, count = re.subn(rf"\b{re.escape(old)}\b", lambda _: new, text)
    if not count:
        raise ValueError(f"there is no word {old!r} in {text!r}")
    return changed


@dataclass(frozen=True)
class Words:
    """The prompts of a workflow, and the Demo-Scene they are about ("" where a photo is loaded).

    target: "" where there is no target prompt. sentences: what an edit direction is made of.
    """

    source: str
    target: str
    scene: str = ""
    sentences: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Kit:
    """A model family that a workflow is made for.

    label: what the README calls it. suffix: what its files end in. size: pixels a side.
    checkpoint: the file that holds model, CLIP and VAE. parts: one file each instead, in this
    order. Neither: the Demo-Model with a `network`. coarsest: `max_downsample` of the finest
    attention.
    """

    label: str
    suffix: str
    run: str
    size: int
    checkpoint: dict[str, str] | None = None
    parts: tuple[dict[str, str], ...] = ()
    network: str = "unet"
    coarsest: int = 1

    @property
    def demo(self) -> bool:
        """Whether it is the pack's own model."""
        return not (self.checkpoint or self.parts)


DEMO = Kit(
    "demo",
    "",
    "press Run; the model and the picture come with Retrace, nothing is downloaded.",
    128,
)
SD15 = Kit(
    "SD1.5",
    "_sd15",
    "load your photo in *Photo*, write what it shows in *What the photo shows* and what it should "
    "show in Prompt-Pair, press Run. Needs [Stable Diffusion 1.5](https://huggingface.co/Comfy-Org/"
    "stable-diffusion-v1-5-archive) in `models/checkpoints`; any SD1.5 checkpoint does.",
    512,
    {
        "name": "v1-5-pruned-emaonly-fp16.safetensors",
        "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
        "v1-5-pruned-emaonly-fp16.safetensors?download=true",
        "directory": "checkpoints",
    },
)
SDXL = Kit(
    "SDXL",
    "_sdxl",
    "load your photo in *Photo*, write what it shows in *What the photo shows* and what it should "
    "show in Prompt-Pair, press Run. Needs [SDXL 1.0](https://huggingface.co/stabilityai/"
    "stable-diffusion-xl-base-1.0) in `models/checkpoints`; any SDXL checkpoint does.",
    1024,
    {
        "name": "sd_xl_base_1.0.safetensors",
        "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
        "sd_xl_base_1.0.safetensors?download=true",
        "directory": "checkpoints",
    },
    coarsest=2,
)
DEMO_DIT = replace(DEMO, network="dit")
PIXART = Kit(
    "PixArt",
    "_pixart",
    "load your photo in *Photo*, write what it shows in *What the photo shows* and what it should "
    "show in Prompt-Pair, press Run. Needs [PixArt-Sigma](https://huggingface.co/PixArt-alpha/"
    "PixArt-Sigma-XL-2-1024-MS), saved under the name in the loader in `models/diffusion_models`, "
    "the T5 text encoder in `models/text_encoders` and SDXL's VAE in `models/vae`.",
    1024,
    parts=(
        {
            "name": "PixArt-Sigma-XL-2-1024-MS.safetensors",
            "url": "https://huggingface.co/PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/resolve/main/"
            "transformer/diffusion_pytorch_model.safetensors?download=true",
            "directory": "diffusion_models",
        },
        {
            "name": "t5xxl_fp16.safetensors",
            "url": "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/"
            "t5xxl_fp16.safetensors?download=true",
            "directory": "text_encoders",
        },
        {
            "name": "sdxl_vae.safetensors",
            "url": "https://huggingface.co/stabilityai/sdxl-vae/resolve/main/"
            "sdxl_vae.safetensors?download=true",
            "directory": "vae",
        },
    ),
)


class Loaded(NamedTuple):
    """Model, text encoder and autoencoder, from one loader or three."""

    model: Output
    clip: Output
    vae: Output


@dataclass
class Start:
    """The first two groups of a workflow: picture, model and prompts."""

    loader: Loaded
    picture: Node
    image: Output
    latent: Output
    pair: Node | None
    text: Output
    source: Output
    negative: Output
    words: Words
    kit: Kit

    @property
    def demo(self) -> bool:
        """Whether the model is the pack's own."""
        return self.kit.demo

    @property
    def model(self) -> Output:
        """The checkpoint's model."""
        return self.loader.model

    @property
    def vae(self) -> Output:
        """The checkpoint's autoencoder."""
        return self.loader.vae

    def with_model(self, model: Output) -> Start:
        """Return the same beginning with another model in place of the checkpoint's."""
        return replace(self, loader=self.loader._replace(model=model))


def begin(graph: Graph, kit: Kit, words: Words) -> Start:
    """Draw picture, model and prompts; with no target words, only the source prompt."""
    with graph.group("1  Picture and model"):
        loader = load(graph, kit)
        if not kit.demo:
            picture = graph.add("LoadImage", "Photo", image="example.png")
            image = graph.add(
                "ImageScale", "Crop to the model's size", image=picture.image,
                upscale_method="lanczos", width=kit.size, height=kit.size, crop="center",
            ).image  # fmt: skip
        else:
            picture = graph.add("RetraceDemoScene", scene=words.scene)
            image = picture.image
        latent = graph.add("VAEEncode", pixels=image, vae=loader.vae).latent
    with graph.group("2  Say what changes", 380):
        # the source text is a node of its own: were it typed into Prompt-Pair, changing the
        # target there would make the host run the inversion again
        text = graph.add("PrimitiveStringMultiline", "What the photo shows", value=words.source)
        source = graph.add("CLIPTextEncode", "Source prompt", clip=loader.clip, text=text.string)
        pair = None
        if words.target:
            pair = graph.add(
                "RetracePromptPair", clip=loader.clip, source=text.string, target=words.target
            )
        negative = graph.add("CLIPTextEncode", "Negative prompt", clip=loader.clip, text="")
    encoded = (source.conditioning, negative.conditioning)
    return Start(loader, picture, image, latent, pair, text.string, *encoded, words, kit)


def load(graph: Graph, kit: Kit) -> Loaded:
    """Draw what loads a kit's model, text encoder and autoencoder."""
    if kit.parts:
        model, clip, vae = kit.parts
        return Loaded(
            graph.add(
                "UNETLoader", models=[model], unet_name=model["name"], weight_dtype="default"
            ).model,
            graph.add("CLIPLoader", models=[clip], clip_name=clip["name"], type="pixart").clip,
            graph.add("VAELoader", models=[vae], vae_name=vae["name"]).vae,
        )
    if kit.checkpoint:
        node = graph.add(
            "CheckpointLoaderSimple", models=[kit.checkpoint], ckpt_name=kit.checkpoint["name"]
        )
    else:
        node = graph.add("RetraceDemoModel", network=kit.network)
    return Loaded(node.model, node.clip, node.vae)


def invert(
    graph: Graph, start: Start, *, pinned: bool = True, latent: Output | None = None, **given: Any
) -> Output:
    """Draw DDIM inversion, with Direct Inversion behind it if `pinned`, inside a group."""
    trajectory = graph.add(
        "RetraceInvertDDIM", model=start.model, positive=start.source,
        latent=latent or start.latent, steps=50, **given,
    ).trajectory  # fmt: skip
    if pinned:
        trajectory = graph.add("RetraceInvertDirectInversion", trajectory=trajectory).trajectory
    return trajectory


def prompt_to_prompt(graph: Graph, start: Start, pair: Node | None = None, **given: Any) -> Output:
    """Draw a P2P-Controller on the checkpoint's model."""
    prompts = (pair or start.pair).prompts
    return graph.add("RetraceP2PController", model=start.model, prompts=prompts, **given).model


def sample(graph: Graph, start: Start, model: Output, trajectory: Output, **given: Any) -> Node:
    """Draw the Edit-Sampler."""
    target = start.pair and start.pair.target
    given = {"positive": target, "negative": start.negative, "cfg": 7.5, **given}
    return graph.add("RetraceEditSampler", model=model, trajectory=trajectory, **given)


def show(
    graph: Graph, start: Start, edit: Node, *, prefix: str, mask: bool = False, exact: bool = True,
    metrics: bool = False,
) -> None:
    """Draw the last group: the edit, beside it what the inversion kept, and the report.

    mask: whether the edit has one; then the photo is pasted back where nothing was edited. exact:
    whether a Demo-Scene's exact target is the target of this edit. metrics: measure how near the
    edit is to the picture outside the mask, before that.
    """
    with graph.group("5  Look", 280):
        final = edited = graph.add("VAEDecode", samples=edit.edited, vae=start.vae).image
        source = None
        if mask:
            source = graph.add("VAEDecode", samples=edit.source, vae=start.vae).image
            final = graph.add(
                "RetracePasteBack", edited=edited, source=source, image=start.image
            ).image
        graph.add("SaveImage", "Edited", images=final, filename_prefix=f"Retrace/{prefix}")
        graph.add("PreviewAny", "Report", source=edit.report)
        if metrics:
            measured = graph.add(
                "RetraceEditMetrics", image=start.image, edited=edited, mask=edit.mask
            ).report
            graph.add("PreviewAny", "How near to the picture", source=measured)
        graph.column()
        if source is None:
            source = graph.add("VAEDecode", samples=edit.source, vae=start.vae).image
        graph.add("PreviewImage", "Reconstruction of the source", images=source)
        if mask:
            graph.add("MaskPreview", "Where the edit acted", mask=edit.mask)
        if start.demo and exact:
            graph.add("PreviewImage", "What a perfect edit looks like", images=start.picture.exact)
