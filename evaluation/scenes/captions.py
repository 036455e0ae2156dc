"""Describe scenes in words: mostly one CLIP token a word, always in the same order."""

from __future__ import annotations

import numpy as np

from .scene import Scene, SceneObject, position_words, size_word

DETAILS = ("none", "size", "position", "full")
# half of the captions say neither size nor place: an edit must take these from the source picture
DETAIL_PROBABILITIES = (0.5, 0.15, 0.2, 0.15)


def caption(scene: Scene, details: str = "none") -> str:
    """Describe a scene; colours, shapes and background always, size and position as `details` says.

    details: none, size, position or full.
    Example: "a small red circle left of a blue star on a striped white background".
    """
    if details not in DETAILS:
        raise ValueError(f"unknown details {details!r}; expected one of {DETAILS}")
    with_size, with_position = details in ("size", "full"), details in ("position", "full")
    objects = [_noun_phrase(item, with_size) for item in scene.objects]
    if len(objects) == 2:
        words = f"{objects[0]} {_relation(scene) if with_position else 'and'} {objects[1]}"
    else:
        words = objects[0] + (_place(scene.objects[0]) if with_position else "")
    ground = scene.background
    return f"{words} on a {ground.pattern} {ground.colour} background"


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene with details drawn at random, as for training."""
    return caption(scene, str(rng.choice(DETAILS, p=DETAIL_PROBABILITIES)))


def _noun_phrase(item: SceneObject, with_size: bool) -> str:
    size = size_word(item) if with_size else "medium"
    return f"a {'' if size == 'medium' else size + ' '}{item.colour} {item.shape}"


def _place(item: SceneObject) -> str:
    column, row = position_words(item)
    if row == "middle":
        return " in the middle" if column == "middle" else f" at the {column}"
    return f" at the {row}" if column == "middle" else f" at the {row} {column}"


def _relation(scene: Scene) -> str:
    first, second = scene.objects
    beside = abs(first.x - second.x) > abs(first.y - second.y)
    if beside:
        return "left of" if first.x < second.x else "right of"
    return "above" if first.y < second.y else "below"
