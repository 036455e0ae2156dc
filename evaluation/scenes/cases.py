"""Held-out scenes and one-word swaps with exact targets, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .captions import DETAIL_PROBABILITIES, DETAILS, caption
from .render import render
from .scene import Scene, edit_scene, sample_scene
from .vocabulary import COLOURS, PATTERNS, SHAPES

TRAINING_SEEDS = 1_000_000  # the training pools are drawn from seeds from here on
SWAPS = {"colour": COLOURS, "shape": SHAPES, "background": COLOURS, "pattern": PATTERNS}


@dataclass(frozen=True)
class EditCase:
    """A source and a target scene whose captions differ in exactly one word.

    object_index: the object edited; 0 also where the background is.
    """

    source: Scene
    target: Scene
    source_caption: str
    target_caption: str
    attribute: str
    source_word: str
    target_word: str
    object_index: int

    @cached_property
    def source_image(self) -> np.ndarray:
        """The exact picture before the edit, uint8 "128 128 3"."""
        return render(self.source)

    @cached_property
    def target_image(self) -> np.ndarray:
        """The exact picture after the edit, uint8 "128 128 3"."""
        return render(self.target)

    @cached_property
    def keep_mask(self) -> np.ndarray:
        """Where both exact pictures are equal, bool "128 128": what an edit must not touch."""
        return (self.source_image == self.target_image).all(-1)


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Draw scenes that no training pool holds."""
    rng = _held_out_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Draw held-out scenes with captions as detailed as in training."""
    rng = _held_out_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    details = rng.choice(DETAILS, size=count, p=DETAIL_PROBABILITIES)
    return [(scene, caption(scene, str(d))) for scene, d in zip(scenes, details, strict=True)]


def swap_cases(
    count: int,
    seed: int = 0,
    attributes: Sequence[str] = ("colour", "shape"),
    details: str = "none",
) -> list[EditCase]:
    """Draw held-out one-word swaps, taking the attributes in turn.

    attributes: any of colour, shape, background, pattern. details: as for `caption`.
    """
    unknown = set(attributes) - set(SWAPS)
    if unknown or not attributes:
        raise ValueError(f"attributes must be some of {tuple(SWAPS)}, not {tuple(attributes)}")
    rng = _held_out_rng(seed)
    return [_draw_case(rng, attributes[i % len(attributes)], details) for i in range(count)]


def _draw_case(rng: np.random.Generator, attribute: str, details: str) -> EditCase:
    source = sample_scene(rng)
    index = int(rng.integers(len(source.objects))) if attribute in ("colour", "shape") else 0
    item, ground = source.objects[index], source.background
    before = {
        "colour": item.colour,
        "shape": item.shape,
        "background": ground.colour,
        "pattern": ground.pattern,
    }[attribute]
    taken = {before}
    if attribute in ("colour", "background"):
        taken |= {ground.colour, *(other.colour for other in source.objects)}
    after = str(rng.choice([word for word in SWAPS[attribute] if word not in taken]))
    target = edit_scene(source, attribute, after, index)
    return EditCase(
        source=source,
        target=target,
        source_caption=caption(source, details),
        target_caption=caption(target, details),
        attribute=attribute,
        source_word=before,
        target_word=after,
        object_index=index,
    )


def _held_out_rng(seed: int) -> np.random.Generator:
    if not 0 <= seed < TRAINING_SEEDS:
        raise ValueError(f"held-out seeds lie in [0, {TRAINING_SEEDS}), got {seed}")
    return np.random.default_rng(seed)
