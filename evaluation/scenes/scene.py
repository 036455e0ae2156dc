"""Scenes as frozen values, how they are drawn at random, and how one is edited."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .vocabulary import CANVAS, COLOURS, COLUMNS, PAIR_SIZES, PATTERNS, ROWS, SHAPES, SIZES

ATTRIBUTES = ("colour", "shape", "background", "pattern", "size", "position")
JITTER = 6.0  # pixels either way of a single object's place, so 12 in all


@dataclass(frozen=True)
class SceneObject:
    """One flat object; x, y and radius in pixels of a 128 x 128 scene, shade in [-1, 1]."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    shade: float = 0.0

    def __post_init__(self) -> None:
        _require(self.shape, SHAPES, "shape")
        _require(self.colour, COLOURS, "colour")


@dataclass(frozen=True)
class Background:
    """What lies behind the objects."""

    colour: str
    pattern: str = "plain"
    shade: float = 0.0

    def __post_init__(self) -> None:
        _require(self.colour, COLOURS, "background colour")
        _require(self.pattern, PATTERNS, "pattern")


@dataclass(frozen=True)
class Scene:
    """A background and one or two objects that do not touch; enough to render the exact picture."""

    background: Background
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 2:
            raise ValueError(f"a scene has one or two objects, not {len(self.objects)}")


def size_word(item: SceneObject) -> str:
    """Name the size of an object: small, medium or large."""
    return next(word for word, (_, high) in SIZES.items() if item.radius <= high)


def position_words(item: SceneObject) -> tuple[str, str]:
    """Name the nearest column (left, middle, right) and row (top, middle, bottom) of an object."""
    column = min(COLUMNS, key=lambda word: abs(COLUMNS[word] - item.x))
    row = min(ROWS, key=lambda word: abs(ROWS[word] - item.y))
    return column, row


def sample_scene(rng: np.random.Generator, pair_probability: float = 0.33) -> Scene:
    """Draw a scene: colours all different, objects apart from each other and from the border."""
    colours = [str(word) for word in rng.permutation(list(COLOURS))[:3]]
    background = Background(colours[0], str(rng.choice(PATTERNS)), float(rng.uniform(-1, 1)))
    if rng.random() < pair_probability:
        places = _pair_places(rng)
    else:
        low, high = SIZES[str(rng.choice(list(SIZES)))]
        places = [_single_place(rng, float(rng.uniform(low, high)))]
    objects = tuple(
        SceneObject(str(rng.choice(SHAPES)), colour, *place, shade=float(rng.uniform(-1, 1)))
        for colour, place in zip(colours[1:], places, strict=False)
    )
    return Scene(background, objects)


def edit_scene(scene: Scene, attribute: str, value: str, object_index: int = 0) -> Scene:
    """Give the scene with one attribute set to a word and everything else as it was.

    attribute: colour, shape, size or position (of the object), background or pattern.
    value: a word of `vocabulary`; position takes left, right, top, bottom or middle.
    Raises: ValueError for an unknown attribute, or a colour that would hide an object.
    """
    if attribute in ("background", "pattern"):
        field = {"background": "colour", "pattern": "pattern"}[attribute]
        edited = replace(scene, background=replace(scene.background, **{field: value}))
    elif attribute in ATTRIBUTES:
        item = _edit_object(scene.objects[object_index], attribute, value)
        objects = list(scene.objects)
        objects[object_index] = item
        edited = replace(scene, objects=tuple(objects))
    else:
        raise ValueError(f"unknown attribute {attribute!r}; expected one of {ATTRIBUTES}")
    if any(item.colour == edited.background.colour for item in edited.objects):
        raise ValueError(f"a {value} {attribute} would hide an object of this scene")
    return edited


def add_object(scene: Scene, item: SceneObject) -> Scene:
    """Give the scene with one more object."""
    return replace(scene, objects=(*scene.objects, item))


def remove_object(scene: Scene, object_index: int) -> Scene:
    """Give the scene without one of its two objects."""
    kept = [item for index, item in enumerate(scene.objects) if index != object_index]
    return replace(scene, objects=tuple(kept))


def _edit_object(item: SceneObject, attribute: str, value: str) -> SceneObject:
    if attribute == "size":
        _require(value, SIZES, "size")
        return replace(item, radius=sum(SIZES[value]) / 2)
    if attribute == "position":
        if value in ("top", "bottom"):
            return replace(item, y=ROWS[value])
        _require(value, COLUMNS, "position")
        return replace(item, x=COLUMNS[value])
    return replace(item, **{attribute: value})


def _single_place(rng: np.random.Generator, radius: float) -> tuple[float, float, float]:
    margin = radius + 5
    x = float(rng.choice(list(COLUMNS.values()))) + rng.uniform(-JITTER, JITTER)
    y = float(rng.choice(list(ROWS.values()))) + rng.uniform(-JITTER, JITTER)
    inside = np.clip([x, y], margin, CANVAS - margin)
    return float(inside[0]), float(inside[1]), radius


def _pair_places(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    # the first object is the left or the upper one: captions read in that order
    places = []
    side_by_side = rng.random() < 0.5
    across = 64.0 + rng.uniform(-8, 8)
    for along in (33.0, 95.0):
        low, high = PAIR_SIZES[str(rng.choice(list(PAIR_SIZES)))]
        radius = float(rng.uniform(low, high))
        slack = max(0.0, 29.0 - radius)  # each keeps to its own half, 4 pixels from border and seam
        main = along + rng.uniform(-slack, slack)
        cross = across + rng.uniform(-JITTER, JITTER) * 2
        x, y = (main, cross) if side_by_side else (cross, main)
        places.append((float(x), float(y), radius))
    return places


def _require(value: str, allowed: object, what: str) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; expected one of {tuple(allowed)}")
