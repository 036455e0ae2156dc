"""Curves drawn as IMAGE tensors with Pillow: axes, ticks, labels, nothing else."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INKS = ((31, 98, 178), (200, 82, 32), (44, 140, 74), (142, 68, 160), (90, 90, 90))

Point = tuple[float, float]


def draw_curves(
    curves: Sequence[Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    names: Sequence[str] = (),
    size: tuple[int, int] = (768, 480),
) -> Tensor:
    """Return a plot with a logarithmic y axis as an IMAGE, "1 height width 3" in [0, 1].

    curves: points (x, y) each; points whose y is not positive and finite are left out.
    """
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font, small = load_font(17), load_font(14)
    shown = [[(x, y) for x, y in curve if y > 0 and math.isfinite(y)] for curve in curves]
    points = [point for curve in shown for point in curve]
    box = (96, 48, size[0] - 24, size[1] - 64)
    draw.text((size[0] / 2, 24), title, fill=(0, 0, 0), font=font, anchor="mm")
    draw.text((size[0] / 2, size[1] - 18), x_label, fill=(0, 0, 0), font=small, anchor="mm")
    draw_upright(image, (16, (box[1] + box[3]) // 2), y_label, small)
    if points:
        to_pixel = draw_axes(draw, box, points, small)
        for number, curve in enumerate(shown):
            ink = INKS[number % len(INKS)]
            pixels = [to_pixel(point) for point in curve]
            if len(pixels) > 1:
                draw.line(pixels, fill=ink, width=2)
            for px, py in pixels if len(pixels) < 120 else ():
                draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=ink)
            if number < len(names):
                draw.text((box[2] - 8, box[1] + 12 + 18 * number), names[number], fill=ink,
                          font=small, anchor="rm")
    draw.rectangle(box, outline=(0, 0, 0))
    array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return array.reshape(1, size[1], size[0], 3).float() / 255


def draw_axes(draw: ImageDraw.ImageDraw, box: tuple, points: list[Point], font):
    """Draw grid lines and tick labels; return the map from a point to its pixel."""
    xs, ys = [p[0] for p in points], [math.log10(p[1]) for p in points]
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    high = max(high, low + 1)

    def to_pixel(point: Point) -> tuple[float, float]:
        across = (point[0] - left) / (right - left)
        up = (math.log10(point[1]) - low) / (high - low)
        return box[0] + 8 + across * (box[2] - box[0] - 16), box[3] - up * (box[3] - box[1])

    for power in range(low, high + 1, max(1, (high - low) // 8)):
        py = to_pixel((left, 10.0**power))[1]
        draw.line((box[0], py, box[2], py), fill=(225, 225, 225))
        draw.text((box[0] - 8, py), f"1e{power}", fill=(0, 0, 0), font=font, anchor="rm")
    for tick in nice_ticks(left, right):
        px = to_pixel((tick, 10.0**low))[0]
        draw.line((px, box[1], px, box[3]), fill=(238, 238, 238))
        draw.text((px, box[3] + 14), f"{tick:g}", fill=(0, 0, 0), font=font, anchor="mm")
    return to_pixel


def nice_ticks(left: float, right: float, wanted: int = 8) -> list[float]:
    """Return round numbers between two ends, about as many as wanted."""
    rough = (right - left) / wanted
    unit = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next((unit * factor for factor in (1, 2, 5) if unit * factor >= rough), unit * 10)
    first = math.ceil(left / step - 1e-9)
    return [n * step for n in range(first, math.floor(right / step + 1e-9) + 1)]


def draw_upright(image: Image.Image, centre: tuple[int, int], text: str, font) -> None:
    """Write text from bottom to top, its middle at `centre`."""
    left, top, right, bottom = font.getbbox(text)
    strip = Image.new("RGB", (int(right - left) + 4, int(bottom - top) + 6), (255, 255, 255))
    ImageDraw.Draw(strip).text((2 - left, 2 - top), text, fill=(0, 0, 0), font=font)
    strip = strip.rotate(90, expand=True)
    image.paste(strip, (centre[0] - strip.width // 2, centre[1] - strip.height // 2))


def load_font(points: int):
    """Return Pillow's own font at a size, or its bitmap font where Pillow has no FreeType."""
    try:
        return ImageFont.load_default(points)
    except TypeError:  # Pillow before 10.1 takes no size
        return ImageFont.load_default()
