"""Edits of scenes, many at once, through the pack's own host functions. Needs a ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..attention.alignment import make_token_map
from ..attention.prompt_to_prompt import PromptPair, PromptToPrompt
from ..diffusion.paste_back import paste_back
from ..diffusion.trajectory import SourceRule, Trajectory
from ..host.editing import run_edit, with_controller
from ..host.inversion import invert
from ..host.tokens import encode, pair_prompts
from .scenes import EditCase
from .scenes_bench import phrases
from .settings import Settings


class Outcome(NamedTuple):
    """What a method made of a batch, and what it cost.

    edited: LATENT samples "batch channels h w"; source: its reconstruction of the source.
    rows: row-forwards a picture of inversion and of edit; seconds: a picture, both together.
    mask: where the edit could act, "batch height width" in pixels; None for no edit. pasted:
    whether the photo takes the place of what was not edited.
    """

    edited: Tensor
    source: Tensor
    rows: tuple[int, int]
    seconds: float
    mask: Tensor | None = None
    pasted: bool = False


Method = Callable[["Workbench"], Outcome]


class Workbench:
    """A batch of cases that share their token layout, so that one controller fits them all.

    The prompts may differ: a batch has one conditioning row for each picture. Inversions are made
    once and shared by the methods; every method is still charged for the one it uses.
    """

    def __init__(self, demo: Any, cases: Sequence[EditCase], settings: Settings) -> None:
        self.demo, self.cases, self.settings = demo, list(cases), settings
        self.model, self.clip, self.vae = demo
        self._kept: dict[Any, Any] = {}

    @cached_property
    def source(self) -> list:
        """The source prompts' CONDITIONING."""
        return self.conditioning([case.source_caption for case in self.cases])

    @cached_property
    def target(self) -> list:
        """The target prompts' CONDITIONING."""
        return self.conditioning([case.target_caption for case in self.cases])

    @cached_property
    def negative(self) -> list:
        """The empty prompt's CONDITIONING."""
        return self.conditioning([""] * len(self.cases))

    @cached_property
    def prompts(self) -> PromptPair:
        """The first case's prompts; the others' tokens stand at the same places."""
        case = self.cases[0]
        return pair_prompts(self.clip, case.source_caption, case.target_caption)

    @cached_property
    def latent(self) -> dict[str, Tensor]:
        """The encoded source pictures."""
        return self.encode_pictures([case.source_image for case in self.cases])

    def conditioning(self, texts: Sequence[str]) -> list:
        """Encode prompts into one CONDITIONING with a row for each."""
        return [[torch.cat([encode(self.clip, text)[0][0] for text in texts]), {}]]

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Encode uint8 pictures into a LATENT."""
        return {"samples": self.vae.encode(torch.from_numpy(np.stack(pictures)) / 255)}

    def decode(self, samples: Tensor) -> Tensor:
        """Decode LATENT samples to pictures "batch height width 3" in [0, 1]."""
        return self.vae.decode(samples).to("cpu", torch.float32)

    def pictures(self, outcome: Outcome) -> tuple[Tensor, Tensor]:
        """Decode an edit, pasted back into the photo if it is to be, and its reconstruction."""
        edited, source = self.decode(outcome.edited), self.decode(outcome.source)
        if outcome.pasted:
            photos = torch.from_numpy(np.stack([case.source_image for case in self.cases])) / 255
            edited, _ = paste_back(edited, source, photos, outcome.mask)
        return edited, source

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gave the first time it was asked for under this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def ddim(self) -> Trajectory:
        """Invert with DDIM at cfg 1 and keep the source branch free."""
        return self.once("ddim", self.invert)

    def invert(self, **options: Any) -> Trajectory:
        """Invert with DDIM and further options of `host.inversion.invert`."""
        steps = self.settings.steps
        return invert(self.model, self.source, self.latent, steps=steps, **options)[0]

    def pinned(self, trajectory: Trajectory) -> Trajectory:
        """Put Direct Inversion on a trajectory."""
        return trajectory.replace(source_rule=SourceRule(pinned=True))

    def phrases(self) -> tuple[str, str]:
        """Name the object that changes before and after, as the captions do."""
        return phrases(self.cases[0])

    def p2p(self, **changes: Any) -> PromptToPrompt:
        """Make the Prompt-to-Prompt controller of this batch."""
        windows = {
            "cross_replace": (0.0, self.settings.cross),
            "self_replace": (0.0, self.settings.self_),
            "self_tokens": self.settings.self_tokens,
        }
        return PromptToPrompt(self.prompts, **{**windows, **changes})

    def edit(
        self,
        trajectory: Trajectory,
        *controllers: Any,
        model: Any = None,
        positive: list | None = None,
        reconstruct: bool = False,
        **options: Any,
    ) -> Outcome:
        """Edit with the target prompts under some controllers, in the order given.

        model: another MODEL than the demo's, with what is on it already. positive: another
        CONDITIONING than the target prompts'.
        """
        model = self.model if model is None else model
        for controller in controllers:
            model = with_controller(model, controller)
        options = {"cfg": self.settings.cfg, **options}
        result = run_edit(
            model, trajectory, positive or self.target, self.negative, reconstruct=reconstruct,
            **options,
        )  # fmt: skip
        rows, seconds = spent(trajectory)
        count = len(self.cases)
        return Outcome(
            result.edited,
            result.source,
            (rows // count, result.report["row_forwards"] // count),
            (seconds + result.report["seconds"]) / count,
            result.mask,
        )

    def retrace(self, trajectory: Trajectory) -> Outcome:
        """Sample back with the source prompts at cfg 1 and nothing else: the round trip."""
        free = trajectory.replace(source_rule=SourceRule())
        result = run_edit(self.model, free, self.source, None, cfg=1.0, reconstruct=False)
        (rows, seconds), count = spent(trajectory), len(self.cases)
        return Outcome(
            result.edited,
            result.edited,
            (rows // count, result.report["row_forwards"] // count),
            (seconds + result.report["seconds"]) / count,
        )


def spent(trajectory: Trajectory) -> tuple[int, float]:
    """Return the row-forwards and seconds of an inversion with all its refinements."""
    entries = dict(trajectory.report)
    rows = sum(value for name, value in entries.items() if name.endswith("row_forwards"))
    return rows, sum(value for name, value in entries.items() if name.endswith("seconds"))


def token_layout(clip: Any, case: EditCase) -> tuple:
    """Return all that a controller takes from a case's prompts; equal means that batches may mix.

    That is the alignment of their tokens and where the words stand that a blend may name.
    """
    pair = pair_prompts(clip, case.source_caption, case.target_caption)
    token_map = make_token_map(pair.source, pair.target)
    before, after = phrases(case)
    return (
        token_map.weights.numpy().tobytes(),
        token_map.mapped.numpy().tobytes(),
        before and pair.source.span(before),
        after and pair.target.span(after),
    )


def batches(clip: Any, cases: Sequence[EditCase], size: int) -> list[list[int]]:
    """Group cases by token layout into batches of at most `size`; gives their numbers."""
    groups: dict[tuple, list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault(token_layout(clip, case), []).append(number)
    return [
        group[start : start + size]
        for group in sorted(groups.values(), key=len, reverse=True)
        for start in range(0, len(group), size)
    ]
