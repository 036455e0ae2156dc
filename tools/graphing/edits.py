"""The graphs behind the two groups that all workflows begin with: one function a workflow."""

from __future__ import annotations

from .graph import Graph, Node, Output
from .parts import Start, invert, prompt_to_prompt, reword, sample, show

NOISE, EDIT = "3  Retrace to noise", "4  Edit"
SAVED = "retrace/trajectory_00001_.trajectory.safetensors [output]"  # the first that is saved
SAVED_DIRECTION = "retrace/direction_00001_.direction.safetensors [output]"
CLIP_VISION = {
    "name": "clip_vision_h.safetensors",
    "url": "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/"
    "clip_vision/clip_vision_h.safetensors?download=true",
    "directory": "clip_vision",
}
OWN_SENTENCES = ("source.txt", "target.txt")  # files that the user writes


def word_swap(graph: Graph, start: Start) -> None:
    """Prompt-to-Prompt replacement over a pinned source."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        edit = sample(graph, start, prompt_to_prompt(graph, start, mode="replace"), trajectory)
    show(graph, start, edit, prefix="word swap")


def refine(graph: Graph, start: Start) -> None:
    """Prompt-to-Prompt refinement over a pinned source."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        model = prompt_to_prompt(graph, start, mode="refine", self_replace=0.4)
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="refine")


def reweight(graph: Graph, start: Start) -> None:
    """Prompt-to-Prompt with a factor on one word."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    word = "yellow" if start.demo else "pink"
    with graph.group(EDIT):
        model = prompt_to_prompt(graph, start, cross_replace=0.8, reweight=f"{word}: 3")
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="reweight", exact=False)


def local_blend(graph: Graph, start: Start) -> None:
    """A word swap that may touch only the word's own region."""
    words = ("heart", "star") if start.demo else ("dress", "dress")
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        model = prompt_to_prompt(
            graph, start, mode="replace", self_replace=0.3, blend_source=words[0],
            blend_target=words[1],
        )  # fmt: skip
        edit = sample(graph, start, model, trajectory, cfg=4.0 if start.demo else 7.5)
    show(graph, start, edit, prefix="local blend", mask=True)


def inside_mask(graph: Graph, start: Start) -> None:
    """A word swap kept inside a mask of the user's."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        drawn = start.picture.changed if start.demo else start.picture.mask
        grown = graph.add("GrowMask", "A little larger", mask=drawn, expand=6).mask
        model = prompt_to_prompt(graph, start, mode="replace")
        edit = sample(graph, start, model, trajectory, mask=grown)
    show(graph, start, edit, prefix="inside mask", mask=True, metrics=True)


def masactrl(graph: Graph, start: Start) -> None:
    """Mutual self-attention: the thing keeps its looks and takes another pose or place."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        model = graph.add("RetraceMasaCtrlController", model=start.model, start_step=0.08).model
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="masactrl", exact=False)


def plug_and_play(graph: Graph, start: Start) -> None:
    """Feature and attention injection: the layout stays, everything is repainted."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        model = graph.add("RetracePnPController", model=start.model).model
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="plug and play", exact=False)


def exact_solver(graph: Graph, start: Start) -> None:
    """DPM-Solver++ inverted exactly, so that the edit takes fewer steps."""
    with graph.group(NOISE):
        trajectory = other_inversion(graph, start, "RetraceInvertDPMSolver", steps=25)
        trajectory = graph.add("RetraceInvertDirectInversion", trajectory=trajectory).trajectory
    with graph.group(EDIT):
        edit = sample(graph, start, prompt_to_prompt(graph, start, mode="replace"), trajectory)
    show(graph, start, edit, prefix="dpm solver")


def dit4edit(graph: Graph, start: Start) -> None:
    """The published pipeline: DPM-Solver++ inverted, unified control, tokens merged throughout."""
    with graph.group(NOISE):
        # the demo's pictures have 64 tokens: of 13 that are left at 0.8 no edit can be made
        ratio = 0.25 if start.demo else 0.8
        merged = graph.add("RetracePatchMerge", model=start.model, ratio=ratio).model
        start = start.with_model(merged)
        trajectory = other_inversion(graph, start, "RetraceInvertDPMSolver", steps=30)
        trajectory = graph.add("RetraceInvertDirectInversion", trajectory=trajectory).trajectory
    with graph.group(EDIT):
        model = graph.add(
            "RetraceDiT4EditController", model=start.model, prompts=start.pair.prompts
        ).model
        edit = sample(graph, start, model, trajectory, cfg=4.5)
    show(graph, start, edit, prefix="dit4edit")


def patch_merge(graph: Graph, start: Start) -> None:
    """A word swap whose inversion and edit merge similar tokens."""
    with graph.group(NOISE):
        merged = graph.add(
            "RetracePatchMerge", model=start.model, ratio=0.5, max_downsample=start.kit.coarsest
        ).model
        start = start.with_model(merged)
        trajectory = invert(graph, start)
    with graph.group(EDIT):
        edit = sample(graph, start, prompt_to_prompt(graph, start, mode="replace"), trajectory)
    show(graph, start, edit, prefix="patch merge")


def edict(graph: Graph, start: Start) -> None:
    """Coupled latents: guided both ways, exact without pinning."""
    with graph.group(NOISE):
        trajectory = other_inversion(
            graph, start, "RetraceInvertEDICT", steps=50, cfg=3.0, negative=start.negative
        )
    with graph.group(EDIT):
        model = prompt_to_prompt(graph, start)
        edit = sample(graph, start, model, trajectory, cfg=3.0)
    show(graph, start, edit, prefix="edict")


def edit_friendly(graph: Graph, start: Start) -> None:
    """Replayed noises of stochastic sampling."""
    with graph.group(NOISE):
        trajectory = other_inversion(
            graph, start, "RetraceInvertEditFriendly", steps=50, cfg=3.5, negative=start.negative
        )
    with graph.group(EDIT):
        edit = sample(graph, start, start.model, trajectory, start_step=12)
    show(graph, start, edit, prefix="edit friendly")


def ledits(graph: Graph, start: Start) -> None:
    """LEDITS++: replayed noises of a fast solver, guidance only where it is strong and wanted."""
    with graph.group(NOISE):
        trajectory = other_inversion(
            graph, start, "RetraceInvertEditFriendly", steps=25, solver="sde-dpmpp-2", cfg=1.0,
            skip=0.3,
        )  # fmt: skip
    with graph.group(EDIT):
        model = graph.add(
            "RetraceSparseGuidance", model=start.model, prompts=start.pair.prompts, quantile=0.8
        ).model
        edit = sample(graph, start, model, trajectory, cfg=4.0 if start.demo else 10.0)
    show(graph, start, edit, prefix="ledits")


def virtual(graph: Graph, start: Start) -> None:
    """No inversion at all, under InfEdit's unified attention control."""
    with graph.group("3  Noise as it goes"):
        trajectory = other_inversion(graph, start, "RetraceVirtualInversion", steps=15)
    with graph.group(EDIT):
        model = graph.add(
            "RetraceUACController", model=start.model, prompts=start.pair.prompts
        ).model
        edit = sample(graph, start, model, trajectory, cfg=3.0)
    show(graph, start, edit, prefix="virtual inversion")


def other_inversion(graph: Graph, start: Start, kind: str, **given) -> Output:
    """Draw an inversion node other than Invert-DDIM."""
    return graph.add(
        kind, model=start.model, positive=start.source, latent=start.latent, **given
    ).trajectory


def null_text(graph: Graph, start: Start) -> None:
    """Null-text optimisation instead of pinning: the published way to a faithful source."""
    with graph.group(NOISE):
        trajectory = invert(graph, start, pinned=False)
        refined = graph.add(
            "RetraceInvertNullText", model=start.model, trajectory=trajectory,
            negative=start.negative, cfg=7.5,
        )  # fmt: skip
        graph.add("PreviewImage", "Loss over all inner steps", images=refined.loss_curve)
    with graph.group(EDIT):
        model = prompt_to_prompt(graph, start, mode="replace")
        edit = sample(graph, start, model, refined.trajectory)
    show(graph, start, edit, prefix="null text")


def style_diffusion(graph: Graph, start: Start) -> None:
    """Values of cross-attention trained on the picture's tokens instead of pinning."""
    with graph.group(NOISE):
        if start.demo:
            vision = graph.add("RetraceDemoVision").clip_vision
            training = {"inner_steps": 20, "start": "identity"}
        else:
            vision = graph.add(
                "CLIPVisionLoader", models=[CLIP_VISION], clip_name=CLIP_VISION["name"]
            ).clip_vision
            training = {}
        trajectory = invert(graph, start, pinned=False)
        graph.column()
        trained = graph.add(
            "RetraceInvertStyleDiffusion", model=start.model, trajectory=trajectory,
            negative=start.negative, clip_vision=vision, image=start.image, cfg=7.5, **training,
        )  # fmt: skip
        graph.add("PreviewImage", "Loss over all inner steps", images=trained.loss_curve)
    with graph.group(EDIT):
        window = graph.add("RetraceStyleDiffusionWindow", trajectory=trained.trajectory)
        model = prompt_to_prompt(graph, start, mode="replace", cross_replace=0.6)
        edit = sample(graph, start, model, window.trajectory)
    show(graph, start, edit, prefix="style diffusion")


def negative_prompt(graph: Graph, start: Start) -> None:
    """Negative-prompt inversion with proximal guidance: no optimisation, no pinning."""
    with graph.group(NOISE):
        trajectory = invert(graph, start, pinned=False)
        refined = graph.add(
            "RetraceInvertNegativePrompt", trajectory=trajectory, negative=start.negative
        ).trajectory
    with graph.group(EDIT):
        model = prompt_to_prompt(graph, start, mode="replace")
        model = graph.add("RetraceProximalGuidance", model=model).model
        edit = sample(graph, start, model, refined)
    show(graph, start, edit, prefix="negative prompt")


def direction(graph: Graph, start: Start) -> Node:
    """Draw the source prompt's embedding moved from one word to another, inside a group."""
    source, target = start.words.sentences
    if start.demo:  # its few words leave no room for the templates' sentences
        sentences = {"source_sentences": source, "target_sentences": target}
    else:
        templates = graph.add("RetraceSentenceTemplates", source_word=source, target_word=target)
        sentences = {
            name: getattr(templates, name) for name in ("source_sentences", "target_sentences")
        }
    return graph.add(
        "RetraceEditDirection", clip=start.loader.clip, conditioning=start.source, **sentences
    )


def pix2pix_zero_direct(graph: Graph, start: Start) -> None:
    """pix2pix-zero with the source pinned by Direct Inversion."""
    with graph.group(NOISE):
        trajectory = invert(graph, start, regularise="fixed")
    with graph.group(EDIT, 340):
        moved = direction(graph, start)
        model = graph.add("RetraceXAttnGuidance", model=start.model).model
        edit = sample(graph, start, model, trajectory, positive=moved.conditioning)
    show(graph, start, edit, prefix="pix2pix zero direct")


def pix2pix_zero(graph: Graph, start: Start) -> None:
    """An edit direction between two words in place of a target prompt, guided by word maps."""
    with graph.group(NOISE):
        trajectory = invert(graph, start, pinned=False, regularise="fixed")
    with graph.group(EDIT, 340):
        moved = direction(graph, start)
        model = graph.add("RetraceXAttnGuidance", model=start.model).model
        edit = sample(graph, start, model, trajectory, positive=moved.conditioning)
        graph.column()
        graph.add("RetraceSaveDirection", direction=moved.direction)
    show(graph, start, edit, prefix="pix2pix zero")
    with graph.group("Another day: switch these on", muted=True):
        loaded = graph.add("RetraceLoadDirection", file=SAVED_DIRECTION).direction
        again = graph.add(
            "RetraceApplyDirection", direction=loaded, conditioning=start.source
        ).conditioning
        edit = sample(graph, start, model, trajectory, positive=again)
        image = graph.add("VAEDecode", samples=edit.edited, vae=start.vae).image
        graph.add("SaveImage", "Edited", images=image, filename_prefix="Retrace/direction")
    with graph.group("Your own lists of sentences: switch these on", muted=True):
        lists = [
            graph.add("RetraceLoadSentences", f"Load-Sentences, {name}", file=name).sentences
            for name in OWN_SENTENCES
        ]
        own = graph.add(
            "RetraceEditDirection", clip=start.loader.clip, conditioning=start.source,
            source_sentences=lists[0], target_sentences=lists[1],
        ).direction  # fmt: skip
        graph.add("RetraceSaveDirection", direction=own, filename_prefix="retrace/own")


def edit_many(graph: Graph, start: Start) -> None:
    """One inversion, three edits."""
    targets = (
        [start.words.target]
        + [reword(start.words.source, *swap) for swap in (("red", "pink"), ("star", "heart"))]
        if start.demo
        else [reword(start.words.source, "pink", colour) for colour in ("blue", "red", "black")]
    )
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    for number, target in enumerate(targets):
        with graph.group(f"4.{number + 1}  Edit", 300):
            pair = start.pair
            if number:
                pair = graph.add(
                    "RetracePromptPair", f"Prompt-Pair {number + 1}", clip=start.loader.clip,
                    source=start.text, target=target,
                )  # fmt: skip
            model = prompt_to_prompt(graph, start, pair, mode="replace")
            edit = sample(
                graph, start, model, trajectory, positive=pair.target, reconstruct=False
            )
            image = graph.add("VAEDecode", samples=edit.edited, vae=start.vae).image
            graph.add(
                "SaveImage", f"Edited {number + 1}", images=image,
                filename_prefix="Retrace/one of many",
            )  # fmt: skip


def batch(graph: Graph, start: Start) -> None:
    """Two images at once: the picture and its mirror image."""
    with graph.group(NOISE):
        mirrored = graph.add(
            "ImageFlip", "Mirror image", image=start.image, flip_method="y-axis: horizontally"
        ).image
        both = graph.add("ImageBatch", "Two pictures", image1=start.image, image2=mirrored).image
        latent = graph.add("VAEEncode", pixels=both, vae=start.vae).latent
        trajectory = invert(graph, start, latent=latent)
    with graph.group(EDIT):
        edit = sample(graph, start, prompt_to_prompt(graph, start, mode="replace"), trajectory)
    show(graph, start, edit, prefix="batch", exact=False)


def attention_viewer(graph: Graph, start: Start) -> None:
    """Record cross-attention over the inversion's states and draw it."""
    with graph.group(NOISE):
        trajectory = invert(graph, start)
    with graph.group("4  Look at attention", 400):
        attention = graph.add(
            "RetraceAttentionCapture", model=start.model, trajectory=trajectory, sites="cross"
        ).attention
        maps = graph.add(
            "RetraceAttentionViewer", attention=attention, prompts=start.pair.prompts,
            image=start.image,
        ).heat_maps  # fmt: skip
        graph.add("SaveImage", "Heat maps", images=maps, filename_prefix="Retrace/attention")


def save_and_load(graph: Graph, start: Start) -> None:
    """Look at a trajectory, save it, and edit from the file on another day."""
    with graph.group(NOISE):
        trajectory = invert(graph, start, pinned=False)
    with graph.group("4  Look and save", 400):
        graph.add("RetraceTrajectoryViewer", trajectory=trajectory, vae=start.vae,
                  model=start.model)  # fmt: skip
        graph.add("RetraceSaveTrajectory", trajectory=trajectory)
    with graph.group("5  Another day: switch these on", muted=True):
        loaded = graph.add("RetraceLoadTrajectory", file=SAVED).trajectory
        pinned = graph.add("RetraceInvertDirectInversion", trajectory=loaded).trajectory
        model = prompt_to_prompt(graph, start, mode="replace")
        edit = sample(graph, start, model, pinned)
        graph.column()
        image = graph.add("VAEDecode", samples=edit.edited, vae=start.vae).image
        graph.add("SaveImage", "Edited", images=image, filename_prefix="Retrace/from a file")
