"""pix2pix-zero's edits, from an edit direction: recipes over a workbench."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..attention.edit_direction import add_direction
from ..attention.map_guidance import AttentionGuidance
from ..diffusion.trajectory import Trajectory
from ..host.edit_direction import make_direction
from .scenes import EditCase, caption, held_out_scenes
from .workbench import Method, Outcome, Workbench

SENTENCES = 32
SENTENCE_SEED = 77


def sentence_sets(case: EditCase) -> tuple[list[str], list[str]]:
    """Write captions of other scenes with the case's word before and after the edit in its place.

    They have as many words as the case's caption, so that the tokens stand at the same places.
    """
    words = case.source_caption.split()
    place = next(
        i
        for i, (old, new) in enumerate(zip(words, case.target_caption.split(), strict=True))
        if old != new
    )
    sets: tuple[list[str], list[str]] = ([], [])
    for scene in held_out_scenes(4 * SENTENCES, SENTENCE_SEED):
        sentence = caption(scene).split()
        if len(sentence) != len(words) or len(sets[0]) == SENTENCES:
            continue
        for found, word in zip(sets, (case.source_word, case.target_word), strict=True):
            found.append(" ".join([*sentence[:place], word, *sentence[place + 1 :]]))
    return sets


def directed(bench: Workbench) -> list:
    """Return the source prompts' CONDITIONING moved along each case's direction."""

    def move() -> list:
        rows = []
        for row, case in enumerate(bench.cases):
            direction = make_direction(bench.clip, *sentence_sets(case))
            own = [[bench.source[0][0][row : row + 1], {}]]
            rows.append(add_direction(own, direction, 1.0)[0][0])
        return [[torch.cat(rows), {}]]

    return bench.once("directed", move)


def regularised(bench: Workbench) -> Trajectory:
    """Invert with DDIM and pix2pix-zero's regularisation."""
    return bench.once("regularised", lambda: bench.invert(regularise="fixed"))


def pix2pix_zero(
    invert: Callable[[Workbench], Trajectory], guided: bool = True, pinned: bool = False
) -> Method:
    """Return the method: an inversion and the direction, with or without XAttn-Guidance."""

    def method(bench: Workbench) -> Outcome:
        trajectory = invert(bench)
        if pinned:
            trajectory = bench.pinned(trajectory)
        guidance = [AttentionGuidance(bench.settings.amount)] if guided else []
        return bench.edit(trajectory, *guidance, positive=directed(bench))

    return method


DIRECTIONS: dict[str, Method] = {
    "direction": pix2pix_zero(Workbench.ddim, guided=False),
    "direction + XAttn-Guidance": pix2pix_zero(Workbench.ddim),
    "DirectInversion + direction + XAttn-Guidance": pix2pix_zero(Workbench.ddim, pinned=True),
    "pix2pix-zero (regularised inversion)": pix2pix_zero(regularised),
    "DirectInversion + pix2pix-zero": pix2pix_zero(regularised, pinned=True),
}
