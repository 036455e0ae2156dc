"""The workflows of the pack: what each promises, shows and says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import edits
from .graph import Graph
from .parts import (
    DEMO,
    DEMO_DIT,
    NOTE,
    PIXART,
    SD15,
    SDXL,
    Kit,
    Start,
    Words,
    begin,
    reword,
)

PAIR = "a red circle and a yellow star on a striped blue background"
HEART = "a purple heart on a plain white background"
SQUARE = "a green square on a plain pink background"
RING = "a white ring on a plain green background"
REDS = "\n".join(
    f"a red {shape} on a {ground} background"
    for shape in ("circle", "square", "star", "heart")
    for ground in ("striped blue", "plain white", "checkered yellow")
)
GIRL = "a drawing of a girl in a pink dress on a green hill"


@dataclass(frozen=True)
class Recipe:
    """One workflow in the versions of several kits.

    promise: its line in the README. what, change, expect: its note.
    """

    name: str
    title: str
    promise: str
    build: Callable[[Graph, Start], None]
    words: tuple[tuple[Kit, Words], ...]
    what: str
    change: tuple[str, ...]
    expect: str

    def draw(
        self, kit: Kit, words: Words, info: dict[str, Any], pack: str, version: str
    ) -> dict[str, Any]:
        """Return one version as the page saves it."""
        graph = Graph(self.name + kit.suffix, info, pack, version)
        change = "\n".join(f"- {line}" for line in self.change)
        text = NOTE.format(
            title=self.title, what=self.what, run=kit.run, change=change, expect=self.expect
        )
        graph.note("Read me", text)
        self.build(graph, begin(graph, kit, words))
        return graph.to_json()


def _words(scene: str, demo: tuple[str, str], photo: tuple[str, str], *more: Kit) -> tuple:
    """Return the versions: the demo model's, SD1.5's, and more checkpoints with its prompts."""
    kits = [(DEMO, Words(*demo, scene))]
    return (*kits, *((kit, Words(*photo)) for kit in (SD15, *more)))


SWAP = _words(
    "colour", (PAIR, reword(PAIR, "red", "green")), (GIRL, reword(GIRL, "pink", "blue")), SDXL
)
PINNED = (
    "The picture is retraced to noise under the source prompt, then walked back under the target "
    "prompt, with Direct Inversion pinning the source to what was retraced. "
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "edit_word_swap",
        "Swap a word",
        "one word of the sentence is swapped, the rest of the picture stays",
        edits.word_swap,
        SWAP,
        PINNED + "Prompt-to-Prompt lends the source's attention to the edit, so only what the "
        "swapped word is about changes.",
        (
            "a word of *target* in Prompt-Pair: the inversion is not run again",
            "**cross_replace** in P2P-Controller: lower gives the new word more freedom",
            "**self_replace**: higher keeps shapes and outlines, lower lets them change",
            "**cfg** in Edit-Sampler: higher makes the new word stronger",
        ),
        "the swapped word shows, the rest stays; the report counts the model's work.",
    ),
    Recipe(
        "edit_refine",
        "Add words",
        "words are added; what was there keeps its place",
        edits.refine,
        _words("more words", (RING, reword(RING, "ring", "ring and a red star")),
               (GIRL, GIRL + " full of flowers at night")),
        PINNED + "Words that are in both prompts keep the source's attention, words that were "
        "added get their own (Prompt-to-Prompt refinement).",
        (
            "the words added to *target* in Prompt-Pair",
            "**self_replace** in P2P-Controller: lower it if the new thing does not appear",
            "**cross_replace**: raise it if what was there moves or changes",
        ),
        "what was there stays, what was added appears where there is room.",
    ),
    Recipe(
        "edit_reweight",
        "Turn a word up or down",
        "the same sentence with more or less weight on one word",
        edits.reweight,
        _words("colour", (PAIR, PAIR), (GIRL, GIRL)),
        PINNED + "Source and target prompt are the same; P2P-Controller multiplies the attention "
        "map of one word (Prompt-to-Prompt reweighting).",
        (
            "the word and its factor in **reweight**: `star: 0.3, striped: 2`; negative suppresses",
            "**cross_replace**: the factors act inside this window",
        ),
        "a little more, or less, of what the word says; 1 changes nothing.",
    ),
    Recipe(
        "edit_local_blend",
        "Change only where the word is",
        "a word swap that may touch only the region the word attends to (LocalBlend)",
        edits.local_blend,
        _words("shape", (HEART, reword(HEART, "heart", "star")),
               (GIRL, reword(GIRL, "pink", "blue")), SDXL),
        PINNED + "LocalBlend looks where *blend_source* and *blend_target* attend and keeps the "
        "source everywhere else, so the words inside may change freely.",
        (
            "**blend_source**, **blend_target** in P2P-Controller: words of the two prompts",
            "**blend_threshold**: higher makes the region smaller",
            "**blend_start**: how many steps pass before the first blend",
        ),
        "the mask shows the region; wherever nothing was edited the picture is the photo, pixel "
        "for pixel (*Paste-Back*).",
    ),
    Recipe(
        "edit_inside_mask",
        "Change only inside a mask",
        "a word swap kept inside a mask of yours",
        edits.inside_mask,
        _words("colour", (PAIR, reword(PAIR, "red", "green")),
               (GIRL, reword(GIRL, "pink", "blue"))),
        PINNED + "A mask on the Edit-Sampler keeps the source outside it at every step. With a "
        "photo: right-click it, *Open in MaskEditor*, paint what may change.",
        (
            "the mask; a little larger than the thing is better than too tight",
            "**self_replace** in P2P-Controller: with a mask it may be lower",
        ),
        "outside the mask that is shown the picture is the photo, pixel for pixel (*Paste-Back*).",
    ),
    Recipe(
        "edit_masactrl",
        "Reshape it, keep its looks",
        "a new shape, size or pose with the source's appearance (MasaCtrl)",
        edits.masactrl,
        _words("shape", (HEART, reword(HEART, "purple", "large purple")),
               (GIRL, reword(GIRL, "a girl", "a jumping girl"))),
        PINNED + "From *start_step* on the target's self-attention looks up the source's content: "
        "the prompt decides on the layout first, the source fills it.",
        (
            "the pose or place in *target*",
            "**start_step** in MasaCtrl-Controller: later (a larger fraction) lets more change",
            "**start_layer**: deeper layers only carry texture",
        ),
        "the layout follows the target prompt, the looks follow the source.",
    ),
    Recipe(
        "edit_plug_and_play",
        "Repaint, keep the layout",
        "everything is repainted in the source's layout (Plug-and-Play)",
        edits.plug_and_play,
        _words("colour",
               (PAIR, "a pink circle and a white star on a checkered green background"),
               (GIRL, "an oil painting of a woman in a red dress on a hill in autumn")),
        PINNED + "The source's decoder features and self-attention are used for the target.",
        (
            "*target*: say all of what the picture shall show",
            "**feature_fraction** in PnP-Controller: lower frees the layout",
            "**attention_fraction**: lower frees the fine structure",
        ),
        "other colours and textures, the same composition.",
    ),
    Recipe(
        "edit_null_text",
        "Null-text inversion",
        "the published, optimising way to a faithful source",
        edits.null_text,
        SWAP[:2],
        "Instead of pinning the source, the unconditional embedding of every step is optimised "
        "until guided sampling retraces the inversion. Slow, but done once a picture: it is not "
        "run again when the target changes.",
        (
            "a word of *target* in Prompt-Pair",
            "**inner_steps**: fewer are faster and less exact",
            "**cfg**: the same in Invert-NullText-Optimize and Edit-Sampler",
        ),
        "the losses fall; the reconstruction is nearly the picture.",
    ),
    Recipe(
        "edit_style_diffusion",
        "Values learned from the picture",
        "a network trained on the picture's CLIP tokens keeps the source (StyleDiffusion)",
        edits.style_diffusion,
        SWAP[:2],
        "At every step a small network learns to turn the tokens of the picture into a change of "
        "the prompt where it becomes the values of cross-attention, until guided sampling retraces "
        "the inversion. The slowest way of all, done once a picture. The demo's image encoder is "
        "untrained and its training short; with a photo, Load CLIP Vision needs a model such as "
        "clip_vision_h in `models/clip_vision`.",
        (
            "**target_values** in StyleDiffusion-Window: lower lets new words look newer",
            "**inner_steps** in Invert-StyleDiffusion: 100 is the paper's; fewer are less exact",
            "**start**: *identity* gets far with few inner steps, *published* needs many",
        ),
        "the losses fall; the reconstruction is nearly the picture.",
    ),
    Recipe(
        "edit_negative_prompt",
        "Negative-prompt inversion",
        "nearly null-text inversion with no optimisation, with proximal guidance",
        edits.negative_prompt,
        SWAP[:2],
        "The source prompt stands in as negative prompt, so guidance vanishes for the source; "
        "proximal guidance drops what is left of it where the prompts agree.",
        (
            "**quantile** in Proximal-Guidance: higher edits less of the picture",
            "**pull**: how fast the rest goes back to the inversion",
        ),
        "a fast edit with no pinning; a little less exact than Direct Inversion.",
    ),
    Recipe(
        "edit_pix2pix_zero",
        "An edit direction",
        "no target prompt: the direction from one word to another (pix2pix-zero)",
        edits.pix2pix_zero,
        (
            (DEMO, Words(PAIR, "", "colour", (REDS, reword(REDS, "red", "green")))),
            (SD15, Words(GIRL, "", "", ("a pink dress", "a blue dress"))),
        ),
        "Edit-Direction moves the source prompt's embedding by the mean difference of two sets of "
        "sentences; XAttn-Guidance holds the word maps to the source's by a gradient step before "
        "each step. About three times the cost of a plain edit.",
        (
            "the caption in *What the photo shows*: type it, or connect a captioning node's text",
            "the sentences, the words of Sentence-Templates, or Load-Sentences with your own",
            "**strength** in Edit-Direction: how far to move; negative moves the other way",
            "**amount** in XAttn-Guidance: more keeps more of the layout",
        ),
        "the thing changes, the layout stays; the direction is saved for other pictures.",
    ),
    Recipe(
        "edit_pix2pix_zero_direct",
        "An edit direction, source pinned",
        "an edit direction with Direct Inversion: more of the picture stays, at a third less cost",
        edits.pix2pix_zero_direct,
        (
            (DEMO, Words(PAIR, "", "colour", (REDS, reword(REDS, "red", "green")))),
            (SD15, Words(GIRL, "", "", ("a pink dress", "a blue dress"))),
            (SDXL, Words(GIRL, "", "", ("a pink dress", "a blue dress"))),
        ),
        "pix2pix-zero with Direct Inversion behind the regularised inversion: the source branch is "
        "pinned to what was retraced, so the maps that hold the edit are the picture's own.",
        (
            "the caption in *What the photo shows*: type it, or connect a captioning node's text",
            "the sentences, or the words of Sentence-Templates",
            "**strength** in Edit-Direction: how far to move",
            "**amount** in XAttn-Guidance: more keeps more of the layout",
        ),
        "the thing changes, the rest is nearer to the picture than without Direct Inversion.",
    ),
    Recipe(
        "edit_dpm_solver",
        "Fewer steps with DPM-Solver++",
        "an exactly inverted DPM-Solver++, 25 steps each way",
        edits.exact_solver,
        SWAP[:2],
        "Each step of DPM-Solver++ 2M is inverted by solving for it; the Edit-Sampler samples with "
        "the same solver, Direct Inversion pins the source.",
        (
            "**steps** in Invert-DPMSolver: 15 to 30",
            "**iterations**, **tolerance**: how exactly each step is inverted, and its price",
        ),
        "as the word swap with DDIM, in half the steps of the edit.",
    ),
    Recipe(
        "edit_edict",
        "Exact inversion with guidance",
        "two coupled latents that retrace exactly at any guidance (EDICT)",
        edits.edict,
        _words("background", (SQUARE, reword(SQUARE, "pink", "yellow")),
               (GIRL, reword(GIRL, "green", "snowy"))),
        "Two latents take turns; each step undoes itself exactly, with guidance too, so "
        "the source comes back with no pinning.",
        (
            "**strength** in Invert-EDICT: lower keeps more of the picture",
            "**cfg**: the same in Invert-EDICT and Edit-Sampler",
        ),
        "an edit that drifts more than from a pinned source, and an exact reconstruction.",
    ),
    Recipe(
        "edit_friendly",
        "Replay the noises",
        "edit-friendly DDPM: stochastic sampling with the picture's own noises",
        edits.edit_friendly,
        SWAP[:2],
        "Invert-EditFriendly finds the noises with which stochastic sampling draws this picture; "
        "the edit replays them under the target prompt.",
        (
            "**start_step** in Edit-Sampler: more keeps more of the picture",
            "**seed**: other noises, another edit; **solver**: LEDITS++ for fewer steps",
        ),
        "several good edits, one a seed.",
    ),
    Recipe(
        "edit_ledits",
        "Edit sparsely",
        "LEDITS++: replayed noises, guided only where the words look and guidance is strong",
        edits.ledits,
        (
            SWAP[0],
            (SD15, Words(GIRL, "a blue dress")),
        ),
        "The picture's own noises under a fast stochastic solver; Sparse-Guidance drops guidance "
        "where it is weak and where the target's words do not look.",
        (
            "*target*: with a photo, the edit alone, such as `sunglasses`",
            "**quantile** in Sparse-Guidance: lower edits more of the picture",
            "**cfg** in Edit-Sampler: 7 to 15",
        ),
        "a change of a part of the picture in about 25 steps.",
    ),
    Recipe(
        "edit_without_inversion",
        "No inversion at all",
        "the source is noised afresh at each step (InfEdit); for few-step models",
        edits.virtual,
        SWAP[:2],
        "Virtual-Inversion evaluates nothing: at each step the source is noised afresh and the "
        "target follows the difference of the two predictions, while UAC-Controller keeps the "
        "source's structure, as InfEdit does. Made for LCM-like models.",
        (
            "the checkpoint: one distilled to few steps, with cfg 1 to 2",
            "**seed**, **steps** in Virtual-Inversion",
            "**self_replace** in UAC-Controller: 0.3 lets shapes change",
        ),
        "a quick edit; softer with an ordinary model.",
    ),
    Recipe(
        "edit_dit4edit",
        "Edit with a diffusion transformer",
        "PixArt: DPM-Solver++, unified attention control, merged tokens (DiT4Edit)",
        edits.dit4edit,
        ((DEMO_DIT, SWAP[0][1]), (PIXART, SWAP[1][1])),
        "DPM-Solver++ is inverted in 30 steps; DiT4Edit-Controller lends the edit the source's "
        "word maps and its structure, and its content after *switch*; PatchMerge merges similar "
        "tokens in self-attention, in the inversion and in the edit: 80 % of PixArt's, as "
        "published, and a quarter of the demo's, which are only 64. Direct Inversion pins the "
        "source, which the paper does not do.",
        (
            "**switch** in DiT4Edit-Controller: 1 keeps structure only, 0 content only; lower it "
            "for new shapes and poses",
            "**cross_replace**: lower gives the new word more freedom",
            "**ratio** in PatchMerge: 0.5 or 0 keeps finer detail and takes longer",
            "the size: any multiple of 16 pixels, such as 1024 x 2048",
        ),
        "the swapped word shows, the rest stays. The demo's transformer is small and its edits are "
        "rough; real PixArt has 4096 tokens at 1024 x 1024.",
    ),
    Recipe(
        "patch_merge",
        "Merge similar tokens",
        "fewer tokens in self-attention, for large pictures (PatchMerge)",
        edits.patch_merge,
        SWAP,
        PINNED + "PatchMerge merges half of the tokens before self-attention and puts them back "
        "after it, alike in the inversion and in the edit.",
        (
            "**ratio** in PatchMerge: 0 is off, 0.8 the published one; higher is faster and "
            "coarser",
            "**max_downsample**: 1 for SD1.5, 2 for SDXL, whose attention begins at half size",
            "**end**: below 1 the last steps see all tokens",
        ),
        "nearly the word swap without it; faster where pictures are large.",
    ),
    Recipe(
        "invert_once_edit_many",
        "Invert once, edit many",
        "one inversion, three edits of it",
        edits.edit_many,
        SWAP[:2],
        "The trajectory goes to three Edit-Samplers. Change a target and only its edit runs "
        "again: ComfyUI keeps the inversion.",
        (
            "the *target* of any Prompt-Pair; *source* must stay what was inverted",
            "add more: copy a group, wire *trajectory*, *model*, *clip* and *negative*",
        ),
        "three edits for the price of one inversion.",
    ),
    Recipe(
        "batch",
        "Many pictures at once",
        "a batch of images through every node at once",
        edits.batch,
        SWAP[:2],
        PINNED + "A LATENT batch is a batch of images: here the picture and its mirror image, "
        "which the same prompts describe.",
        (
            "the pictures: any that one source prompt fits, all of one size",
            "a word of *target* in Prompt-Pair",
        ),
        "each picture gets its own edit, the same as alone.",
    ),
    Recipe(
        "attention_viewer",
        "See where words look",
        "heat maps of the source's words over the picture",
        edits.attention_viewer,
        SWAP[:2],
        "Attention-Capture records the source's cross-attention along the inversion; "
        "Attention-Viewer averages it over steps and layers and draws a tile a word.",
        (
            "**words** in Attention-Viewer: the ones you want, separated by commas",
            "**start**, **end**: early steps show layout, late ones texture",
        ),
        "a word that lights up the wrong place is a word to change before editing.",
    ),
    Recipe(
        "save_and_load",
        "Save an inversion, edit another day",
        "a trajectory as a filmstrip, saved to a file and edited from it",
        edits.save_and_load,
        SWAP[:2],
        "Trajectory-Viewer shows the states on the way and how well sampling retraces them. "
        "Save-Trajectory writes them to the output folder.",
        (
            "after the first run: reload the page's node definitions (*R*), choose the file in "
            "Load-Trajectory, select the last group and press *Ctrl+M* to switch it on",
        ),
        "a strip from picture to noise; a plot of the round trip's error.",
    ),
)
