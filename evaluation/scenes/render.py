"""Draw a scene exactly: signed distances give each pixel its coverage, so edges are smooth."""

from __future__ import annotations

import numpy as np

from .scene import Background, Scene
from .vocabulary import CANVAS, COLOURS, second_shade

SHADE = 6.0  # grey levels that a shade of 1 adds
CELL = 16.0  # pixels of a stripe or a square of the checkered pattern


def render(scene: Scene, size: int = CANVAS, supersample: int = 1) -> np.ndarray:
    """Give the picture of a scene, uint8 "size size 3" in sRGB.

    supersample: samples a pixel in each direction, on top of analytic coverage at that resolution.
    """
    grid = size * supersample
    ys, xs = pixel_centres(grid)
    picture = draw_background(scene.background, xs, ys)
    for item in scene.objects:
        mask = coverage(item.shape, xs, ys, (item.x, item.y, item.radius), CANVAS / grid)[..., None]
        colour = np.array(COLOURS[item.colour], np.float32) + SHADE * item.shade
        picture = picture + mask * (colour - picture)
    picture = picture.reshape(size, supersample, size, supersample, 3).mean((1, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def pixel_centres(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Give y "grid 1" and x "1 grid" of the pixel centres in units of a 128-pixel scene."""
    line = (np.arange(grid, dtype=np.float32) + 0.5) * (CANVAS / grid)
    return line[:, None], line[None, :]


def draw_background(background: Background, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Give the background "height width 3" in sRGB levels, as floats."""
    weight = pattern_weight(background.pattern, xs, ys)[..., None]
    first = np.array(COLOURS[background.colour], np.float32)
    second = np.array(second_shade(background.colour), np.float32)
    return first + weight * (second - first) + SHADE * background.shade


def pattern_weight(pattern: str, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Give how much of the second shade each pixel has, "height width" in [0, 1]."""
    flat = np.zeros(np.broadcast(xs, ys).shape, np.float32)
    if pattern == "plain":
        return flat
    if pattern == "gradient":
        return flat + 1.5 * ys / CANVAS  # past a stripe at the foot, to be told apart
    columns = np.floor(xs / CELL) % 2
    if pattern == "striped":
        return flat + columns
    return flat + (columns + np.floor(ys / CELL)) % 2


def coverage(
    shape: str, xs: np.ndarray, ys: np.ndarray, place: tuple[float, float, float], pixel: float
) -> np.ndarray:
    """Give the share of each pixel that a shape covers, "height width" in [0, 1].

    place: x, y, radius in scene pixels. pixel: the side of one pixel, in scene pixels.
    """
    x, y, radius = place
    distance = DISTANCES[shape]((xs - x) / radius, (ys - y) / radius) * radius
    return np.clip(0.5 - distance / pixel, 0, 1)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.95


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sides = 0.894 * np.abs(x) - 0.447 * (y + 0.98)  # apex up, half as wide at y as it is high
    return np.maximum(sides, y - 0.86) + np.zeros_like(x + y)


def _polygon(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a simple polygon (crossing rule for the sign, segments for the size)."""
    x, y = np.broadcast_arrays(x, y)
    nearest = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(wx - along * ex, wy - along * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / (by - ay) + ax)
    return np.where(inside, -nearest, nearest)


def _star_corners() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45, 1.05)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.05], axis=1)


def _heart_corners() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 15.5], axis=1)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _polygon(_STAR, x, y)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _polygon(_HEART, x, y)


_STAR = _star_corners()
_HEART = _heart_corners()
DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
}
