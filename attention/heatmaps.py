"""Pictures of word maps: colour map, legend, labels. Drawing only; the numbers come from `maps`."""

from collections.abc import Mapping, Sequence
from math import ceil, pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import LatentError

SMALLEST, LARGEST = 256, 384
"""Pixels of a tile's longer side: small images are enlarged, large ones reduced."""

COLUMNS = 5
MARGIN = 8
LABEL, LEGEND = 26, 30
PAPER, INK = (24, 24, 28), (240, 240, 240)


class Tile(NamedTuple):
    """One picture of a sheet: its label, RGB "height width 3" in [0, 1], range of its legend."""

    label: str
    picture: Tensor
    limits: tuple[float, float] | None = None


def colour_table(count: int = 256) -> Tensor:
    """Return a colour map, "count 3" sRGB in [0, 1]: dark violet over red to light yellow.

    Perceptually even by construction: lightness in OKLab grows linearly from 0.20 to 0.95 while
    the hue turns from 295 to 455 (95) degrees. OKLab: Ottosson 2020, "A perceptual color space
    for image processing".
    """
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    lightness = 0.20 + 0.75 * t
    chroma = 0.05 + 0.145 * torch.sin(pi * t.clamp(0.02, 0.93))
    hue = (295 + 160 * t) * pi / 180
    a, b = chroma * torch.cos(hue), chroma * torch.sin(hue)
    return oklab_to_srgb(torch.stack([lightness, a, b], dim=1)).float()


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """Convert "... 3" OKLab to gamma-encoded sRGB in [0, 1]; colours outside are clipped."""
    to_cones = torch.tensor(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ],
        dtype=lab.dtype,
    )
    to_linear = torch.tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ],
        dtype=lab.dtype,
    )
    linear = ((lab @ to_cones.T) ** 3 @ to_linear.T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def colourise(values: Tensor) -> Tensor:
    """Return the colours of values in [0, 1], "..." to "... 3"."""
    table = colour_table()
    return table[(values.clamp(0, 1) * (len(table) - 1)).round().long()]


def overlay(picture: Tensor, heat: Tensor) -> Tensor:
    """Lay a heat map over a picture: "height width 3" each side, heat "height width" in [0, 1].

    The picture shows through as shades of grey, more where the map is low.
    """
    grey = picture @ torch.tensor([0.2126, 0.7152, 0.0722])
    strength = (0.45 + 0.4 * heat)[..., None]
    return torch.lerp(grey[..., None].expand(-1, -1, 3), colourise(heat), strength)


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Return a tile's height and width for a picture, its longer side between the limits."""
    longest = max(height, width)
    scale = min(max(longest, SMALLEST), LARGEST) / longest
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize "channels height width" smoothly."""
    return F.interpolate(planes[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def heat_sheets(
    image: Tensor,
    words: Sequence[str],
    maps: Tensor,
    masks: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draw a sheet for every image: the picture, each word's map over it, masks.

    image: "images-or-1 height width 3" in [0, 1]; maps: "images words rows columns".
    masks: "images-or-1 height width" in [0, 1], by label. Returned: "images height width 3".
    Each word has its own scale, written under its tile.
    """
    masks = masks or {}
    for name, tensor in {"image": image, **masks}.items():
        if len(tensor) not in (1, len(maps)):
            raise LatentError(
                f"the {name} input has {len(tensor)} pictures but the attention was captured for "
                f"{len(maps)}; give one or as many"
            )
    sheets = []
    for number, planes in enumerate(maps):
        picture = image[number % len(image)].float().cpu()[..., :3]
        size = tile_size(*picture.shape[:2])
        picture = resize(picture.movedim(2, 0), size).movedim(0, 2)
        tiles = [Tile("image", picture)]
        tiles += [word_tile(*pair, picture) for pair in zip(words, planes, strict=True)]
        tiles += [
            mask_tile(label, picture, mask[number % len(mask)].float().cpu())
            for label, mask in masks.items()
        ]
        sheets.append(draw_sheet(tiles))
    return torch.stack(sheets)


def word_tile(word: str, plane: Tensor, picture: Tensor) -> Tile:
    """Return the tile of one word: its map stretched between its own limits, over the picture."""
    low, high = float(plane.min()), float(plane.max())
    heat = (plane - low) / (high - low) if high > low else torch.zeros_like(plane)
    heat = resize(heat[None], tuple(picture.shape[:2]))[0]
    return Tile(word, overlay(picture, heat), (low, high))


def mask_tile(label: str, picture: Tensor, mask: Tensor) -> Tile:
    """Return the tile of a mask: the picture in its colours inside, dark and grey outside."""
    inside = F.interpolate(mask[None, None], size=tuple(picture.shape[:2]), mode="nearest")[0, 0]
    inside = inside.clamp(0, 1)[..., None]
    grey = picture.mean(2, keepdim=True).expand(-1, -1, 3) * 0.35
    return Tile(f"{label} ({float(mask.mean()):.0%})", torch.lerp(grey, picture, inside))


def draw_sheet(tiles: Sequence[Tile]) -> Tensor:
    """Draw tiles in rows of at most `COLUMNS`; return "height width 3" in [0, 1]."""
    from PIL import Image, ImageDraw

    height, width = tiles[0].picture.shape[:2]
    rows = ceil(len(tiles) / COLUMNS)
    columns = ceil(len(tiles) / rows)
    cell = (width + MARGIN, LABEL + height + LEGEND)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        x = MARGIN + number % columns * cell[0]
        y = MARGIN + number // columns * cell[1]
        draw_tile(sheet, draw, tile, x, y)
    return from_picture(sheet)


def draw_tile(sheet: Any, draw: Any, tile: Tile, x: int, y: int) -> None:
    """Draw one tile with its label above and its legend below."""
    height, width = tile.picture.shape[:2]
    draw.text((x + 2, y + 2), fitted(draw, tile.label, font(18), width), INK, font=font(18))
    sheet.paste(to_picture(tile.picture), (x, y + LABEL))
    if tile.limits is None:
        return
    low, high = (f"{0 if value < 1e-3 * tile.limits[1] else value:.3g}" for value in tile.limits)
    small = font(13)
    top = y + LABEL + height + 6
    left = x + 2 + draw.textlength(low, font=small) + 6
    right = x + width - 2 - draw.textlength(high, font=small) - 6
    draw.text((x + 2, top - 2), low, INK, font=small)
    draw.text((right + 6, top - 2), high, INK, font=small)
    bar = colour_table(max(int(right - left), 1))[None].expand(12, -1, -1)
    sheet.paste(to_picture(bar), (int(left), top))


def fitted(draw: Any, text: str, face: Any, width: int) -> str:
    """Return a text cut so that it fits a width in pixels."""
    if draw.textlength(text, font=face) <= width - 4:
        return text
    while text and draw.textlength(f"{text}…", font=face) > width - 4:
        text = text[:-1]
    return f"{text}…"


def font(size: int) -> Any:
    """Return Pillow's own font; older ones have it at one size only."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size=size)
    except TypeError:
        return ImageFont.load_default()


def to_picture(pixels: Tensor) -> Any:
    """Convert "height width 3" in [0, 1] to a Pillow image."""
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy())


def from_picture(picture: Any) -> Tensor:
    """Convert a Pillow image to "height width 3" in [0, 1]."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(picture.height, picture.width, 3).float() / 255
