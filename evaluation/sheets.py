"""Contact sheets: pictures in a grid with names of columns and captions of rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, LINE, FONT_SIZE = 8, 17, 14
INK, PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    side: int = 160,
    caption_width: int = 190,
) -> Image.Image:
    """Draw rows of pictures under the names of their columns, each row's caption at its left.

    rows: caption and pictures, uint8 or float in [0, 1], "height width 3"; scaled to `side`.
    Raises: ValueError when a row has another number of pictures than there are columns.
    """
    font = ImageFont.load_default(FONT_SIZE)
    heads = [_wrap(name, side, font) for name in columns]
    top = GAP + LINE * max(len(head) for head in heads) + GAP
    sheet = Image.new(
        "RGB",
        (caption_width + len(columns) * (side + GAP) + GAP, top + len(rows) * (side + GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for i, head in enumerate(heads):
        left = caption_width + GAP + i * (side + GAP)
        _write(draw, head, (left, top - GAP - LINE * len(head)), font)
    for j, (caption, pictures) in enumerate(rows):
        if len(pictures) != len(columns):
            raise ValueError(f"row {caption!r} has {len(pictures)} pictures for {len(columns)}")
        upper = top + j * (side + GAP)
        text = [line for part in caption.split("\n") for line in _wrap(part, caption_width, font)]
        _write(draw, text, (GAP, upper + max(0, (side - LINE * len(text)) // 2)), font)
        for i, picture in enumerate(pictures):
            tile = to_image(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (caption_width + GAP + i * (side + GAP), upper))
    return sheet


def to_image(picture: np.ndarray) -> Image.Image:
    """Make a picture, uint8 or float in [0, 1], one of Pillow's."""
    if picture.dtype != np.uint8:
        picture = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(picture)


def _wrap(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    return textwrap.wrap(text, max(8, int((width - GAP) / font.getlength("n")))) or [""]


def _write(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[int, int], font: object
) -> None:
    for i, line in enumerate(lines):
        draw.text((place[0], place[1] + i * LINE), line, fill=INK, font=font)
