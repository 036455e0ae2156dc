"""Parts that the workflows share: what they begin with, the edit, and what they show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

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
    """

    label: str
    suffix: str
    run: str
    size: int
    checkpoint: dict[str, str] | None = None


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
)


@dataclass
class Start:
    """The first two groups of a workflow: picture, model and prompts."""

    loader: Node
    picture: Node
    image: Output
    latent: Output
    pair: Node | None
    text: Output
    source: Output
    negative: Output
    words: Words
    demo: bool

    @property
    def model(self) -> Output:
        """The checkpoint's model."""
        return self.loader.model

    @property
    def vae(self) -> Output:
        """The checkpoint's autoencoder."""
        return self.loader.vae


def begin(graph: Graph, kit: Kit, words: Words) -> Start:
    """Draw picture, model and prompts; with no target words, only the source prompt."""
    with graph.group("1  Picture and model"):
        if kit.checkpoint:
            loader = graph.add(
                "CheckpointLoaderSimple", models=[kit.checkpoint], ckpt_name=kit.checkpoint["name"]
            )
            picture = graph.add("LoadImage", "Photo", image="example.png")
            image = graph.add(
                "ImageScale", "Crop to the model's size", image=picture.image,
                upscale_method="lanczos", width=kit.size, height=kit.size, crop="center",
            ).image  # fmt: skip
        else:
            loader = graph.add("RetraceDemoModel")
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
    demo = kit.checkpoint is None
    encoded = (source.conditioning, negative.conditioning)
    return Start(loader, picture, image, latent, pair, text.string, *encoded, words, demo)


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

    exact: whether a Demo-Scene's exact target is the target of this edit. metrics: measure how
    near the edit is to the picture outside the mask.
    """
    with graph.group("5  Look", 280):
        edited = graph.add("VAEDecode", samples=edit.edited, vae=start.vae).image
        graph.add("SaveImage", "Edited", images=edited, filename_prefix=f"Retrace/{prefix}")
        graph.add("PreviewAny", "Report", source=edit.report)
        if metrics:
            measured = graph.add(
                "RetraceEditMetrics", image=start.image, edited=edited, mask=edit.mask
            ).report
            graph.add("PreviewAny", "How near to the picture", source=measured)
        graph.column()
        source = graph.add("VAEDecode", samples=edit.source, vae=start.vae).image
        graph.add("PreviewImage", "Reconstruction of the source", images=source)
        if mask:
            graph.add("MaskPreview", "Where the edit acted", mask=edit.mask)
        if start.demo and exact:
            graph.add("PreviewImage", "What a perfect edit looks like", images=start.picture.exact)
