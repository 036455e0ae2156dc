"""The words a scene can be described with, and the colours in sRGB that they stand for."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 45),
    "yellow": (240, 205, 50),
    "green": (45, 150, 75),
    "blue": (45, 85, 205),
    "purple": (130, 55, 170),
    "pink": (245, 140, 185),
    "white": (238, 238, 238),
    "black": (35, 35, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
PATTERNS = ("plain", "striped", "checkered", "gradient")

# pixels of a 128 x 128 scene
CANVAS = 128
SIZES = {"small": (19.0, 23.0), "medium": (23.0, 28.0), "large": (28.0, 34.0)}
PAIR_SIZES = {"small": (19.0, 23.0), "medium": (23.0, 27.0)}
COLUMNS = {"left": 42.0, "middle": 64.0, "right": 86.0}
ROWS = {"top": 42.0, "middle": 64.0, "bottom": 86.0}


def second_shade(colour: str) -> tuple[float, float, float]:
    """Give the darker shade of a patterned background; black gets a lighter one instead."""
    rgb = COLOURS[colour]
    if colour == "black":
        return tuple(channel + 38.0 for channel in rgb)
    return tuple(channel * 0.8 for channel in rgb)
