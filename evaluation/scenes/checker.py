"""Tell from the pixels alone what a picture shows, and which attributes of a scene are right in it.

Nothing is taken from the scene's own places: the objects are found first, then compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from PIL import Image

from .render import coverage, pattern_weight, pixel_centres
from .scene import Scene, SceneObject
from .vocabulary import CANVAS, COLOURS, PATTERNS, SHAPES, second_shade

FOREGROUND = 36.0  # levels from the background's colours at which a pixel is something else
BACKGROUND_ERROR = 22.0  # mean levels off that a background may be
COLOUR_ERROR = 45.0  # levels off that an object's colour may be
LEAST_AREA = 200  # pixels of an object; a smaller patch of DEBRIS pixels or more is a mistake
DEBRIS = 40
TEMPLATE = 32
SLACK = 2  # pixels that blur may have taken off a tip
LEAST_OVERLAP = 0.8  # intersection over union with the shape's template
CLEAR_OVERLAP = 0.9  # no need to look further
NEAR = 12.0  # pixels between the middles of an object and of the one expected


@dataclass(frozen=True)
class FoundObject:
    """An object seen in a picture; colour and shape are None where nothing fits.

    x, y: the middle of its bounding box, in pixels.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows; None where nothing fits. debris: patches too small for an object."""

    background: str | None
    pattern: str | None
    objects: tuple[FoundObject, ...]
    debris: int


@dataclass(frozen=True)
class CheckResult:
    """Which attributes of the expected scene a picture has.

    count: as many objects as expected, and nothing else. located: each within 12 pixels of its
    place, which is reported but is no part of `all`, since captions need not say it.
    """

    colour: bool
    shape: bool
    background: bool
    pattern: bool
    count: bool
    located: bool
    reading: Reading

    @property
    def all(self) -> bool:
        """Everything that a caption says is right."""
        return self.colour and self.shape and self.background and self.pattern and self.count


def check(image: np.ndarray, scene: Scene) -> CheckResult:
    """Compare a picture with a scene.

    image: "height width 3", uint8 or float in [0, 1]; brought to 128 x 128 first if it is not.
    Test: tests/evaluation/test_scenes_checker.py
    """
    reading = read_picture(image)
    expected = scene.objects
    pairs = max(
        (list(zip(expected, order, strict=False)) for order in permutations(reading.objects)),
        key=lambda pairs: sum(
            2 * (found.colour == item.colour)
            + 2 * (found.shape == item.shape)
            + _is_near(found, item)
            for item, found in pairs
        ),
        default=[],
    )
    complete = len(pairs) == len(expected)
    return CheckResult(
        colour=complete and all(found.colour == item.colour for item, found in pairs),
        shape=complete and all(found.shape == item.shape for item, found in pairs),
        background=reading.background == scene.background.colour,
        pattern=reading.pattern == scene.background.pattern,
        count=len(reading.objects) == len(expected) and reading.debris == 0,
        located=complete and all(_is_near(found, item) for item, found in pairs),
        reading=reading,
    )


def read_picture(image: np.ndarray) -> Reading:
    """Find background, pattern and objects of a picture of any scene."""
    picture = _to_levels(image)
    colour, pattern, error = _fit_background(picture)
    distance = _distance_to_shades(picture, colour)
    objects, debris = [], 0
    for patch in _patches(distance > FOREGROUND):
        if patch.sum() >= LEAST_AREA:
            objects.append(_read_object(picture, distance, patch))
        else:
            debris += 1
    good = error < BACKGROUND_ERROR
    return Reading(colour if good else None, pattern if good else None, tuple(objects[:4]), debris)


def _to_levels(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a picture of shape (height, width, 3), got {image.shape}")
    if image.dtype != np.uint8:
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if image.shape[:2] != (CANVAS, CANVAS):
        image = np.asarray(Image.fromarray(image).resize((CANVAS, CANVAS), Image.Resampling.BOX))
    return image.astype(np.float32)


@lru_cache(maxsize=1)
def _backgrounds() -> tuple[list[tuple[str, str]], np.ndarray]:
    ys, xs = pixel_centres(CANVAS)
    names, pictures = [], []
    for colour in COLOURS:
        first = np.array(COLOURS[colour], np.float32)
        second = np.array(second_shade(colour), np.float32)
        for pattern in PATTERNS:
            weight = pattern_weight(pattern, xs, ys)[..., None]
            names.append((colour, pattern))
            pictures.append(first + weight * (second - first))
    return names, np.stack(pictures)  # [32 height width 3]


def _fit_background(picture: np.ndarray) -> tuple[str, str, float]:
    """Give the background that most pixels agree with, and the mean error of those that do."""
    names, pictures = _backgrounds()
    # every other pixel will do to choose; objects count the same for all
    errors = np.linalg.norm(pictures[:, ::2, ::2] - picture[::2, ::2], axis=-1)
    best = int(np.minimum(errors, 60).mean((1, 2)).argmin())
    colour, pattern = names[best]
    outside = _distance_to_shades(picture, colour) <= FOREGROUND
    error = np.linalg.norm(pictures[best] - picture, axis=-1)[outside]
    error = error.mean() if outside.any() else np.inf
    return colour, pattern, float(error)


def _distance_to_shades(picture: np.ndarray, colour: str) -> np.ndarray:
    """Give each pixel's distance to the shades between a background's two, "height width"."""
    first = np.array(COLOURS[colour], np.float32)
    along = np.array(second_shade(colour), np.float32) - first
    share = ((picture - first) @ along / (along @ along)).clip(0, 1.5)[..., None]
    return np.linalg.norm(picture - first - share * along, axis=-1)


def _patches(mask: np.ndarray) -> list[np.ndarray]:
    """Split a mask into its connected patches of DEBRIS pixels or more."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # each pixel takes the largest label beside it until nothing changes
        padded = np.pad(labels, 1)
        largest = np.maximum.reduce(
            [
                padded[1:-1, 1:-1],
                padded[:-2, 1:-1],
                padded[2:, 1:-1],
                padded[1:-1, :-2],
                padded[1:-1, 2:],
            ]
        )
        largest[~mask] = 0
        if np.array_equal(largest, labels):
            break
        labels = largest
    values, counts = np.unique(labels[mask], return_counts=True)
    return [labels == value for value, count in zip(values, counts, strict=True) if count >= DEBRIS]


def _read_object(picture: np.ndarray, distance: np.ndarray, patch: np.ndarray) -> FoundObject:
    inner = patch & (distance >= np.quantile(distance[patch], 0.4))
    level = np.median(picture[inner], axis=0)
    errors = {word: float(np.linalg.norm(level - rgb)) for word, rgb in COLOURS.items()}
    colour = min(errors, key=errors.get)
    # an edge lies where a pixel is half object, half background
    solid = patch & (distance > 0.5 * np.median(distance[inner]))
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return FoundObject(
        colour if errors[colour] < COLOUR_ERROR else None,
        _read_shape(solid, box),
        float(box[0] + box[2]) / 2,
        float(box[1] + box[3]) / 2,
    )


def _read_shape(mask: np.ndarray, box: tuple[int, int, int, int]) -> str | None:
    """Name the shape whose template overlaps a mask most, both stretched to 32 x 32.

    Blur takes the last pixels off thin tips and so moves the box: each of its sides (left, top,
    right, bottom) may lie up to two pixels further out.
    """
    picture = Image.fromarray(np.pad(mask, SLACK).astype(np.float32))
    best = dict.fromkeys(SHAPES, 0.0)
    for out in sorted(product(range(SLACK + 1), repeat=4), key=sum):
        corners = (box[0] - out[0], box[1] - out[1], box[2] + out[2], box[3] + out[3])
        for shape, overlap in _overlaps(picture, corners).items():
            best[shape] = max(best[shape], overlap)
        if max(best.values()) > CLEAR_OVERLAP:
            break  # nothing was taken off
    shape = max(best, key=best.get)
    return shape if best[shape] >= LEAST_OVERLAP else None


def _overlaps(picture: Image.Image, corners: tuple[int, int, int, int]) -> dict[str, float]:
    """Give intersection over union with the template of each shape about as wide for its height.

    picture: a mask with SLACK pixels around it. corners: left, top, right, bottom in the mask.
    """
    box = tuple(side + SLACK for side in corners)
    stretched = np.asarray(picture.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX, box))
    aspect = (box[2] - box[0]) / (box[3] - box[1])
    overlaps = {}
    for shape in SHAPES:
        template, expected, _ = _template(shape)
        if 0.8 < aspect / expected < 1.25:
            # with weights in [0, 1]: the union is the sum less the intersection
            shared = np.minimum(stretched, template).sum()
            overlaps[shape] = float(shared / (stretched.sum() + template.sum() - shared))
    return overlaps


@lru_cache(maxsize=len(SHAPES))
def _template(shape: str) -> tuple[np.ndarray, float, tuple[float, float]]:
    """Give a shape's mask in its bounding box, the box's aspect and its middle over the radius."""
    ys, xs = pixel_centres(CANVAS)
    radius = 50.0
    mask = coverage(shape, xs, ys, (64.0, 64.0, radius), 1.0)
    rows, columns = np.flatnonzero(mask.max(1) > 0.5), np.flatnonzero(mask.max(0) > 0.5)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    small = Image.fromarray(box).resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)
    middle = ((columns[0] + columns[-1] + 1) / 2 - 64, (rows[0] + rows[-1] + 1) / 2 - 64)
    return np.asarray(small), box.shape[1] / box.shape[0], (middle[0] / radius, middle[1] / radius)


def _is_near(found: FoundObject, item: SceneObject) -> bool:
    _, _, (dx, dy) = _template(item.shape)
    return np.hypot(found.x - item.x - dx * item.radius, found.y - item.y - dy * item.radius) < NEAR
