"""Run by the host's own Python, which has Pillow: sheets and thumbnails from a run's pictures.

`python sheets.py` reads from stdin {"pictures": [[title, file], ...], "sheet": file, "thumbnails":
{file: label}} and writes those files as JPEG.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosting.imaging import draw_sheet
from PIL import Image, ImageDraw, ImageFont

SIDE = 256
QUALITY = 88


def draw_thumbnail(pictures: list[Image.Image], label: str) -> Image.Image:
    """Put up to two pictures side by side; a label of the model family in the corner."""
    shown = [pictures[0], pictures[-1]] if len(pictures) > 1 else pictures
    tiles = [_fit(picture) for picture in shown]
    thumbnail = Image.new("RGB", (sum(tile.width for tile in tiles), SIDE), "white")
    left = 0
    for tile in tiles:
        thumbnail.paste(tile, (left, 0))
        left += tile.width
    if label:
        draw, font = ImageDraw.Draw(thumbnail), ImageFont.load_default(22)
        width = int(font.getlength(label)) + 16
        draw.rectangle((0, SIDE - 34, width, SIDE), fill=(20, 20, 24))
        draw.text((8, SIDE - 31), label, fill="white", font=font)
    return thumbnail


def _fit(picture: Image.Image) -> Image.Image:
    """Bring a picture to the thumbnail's height: small ones keep their pixels sharp."""
    grown = picture.height < SIDE
    method = Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS
    width = max(1, round(picture.width * SIDE / picture.height))
    return picture.resize((width, SIDE), method).crop((0, 0, min(width, 2 * SIDE), SIDE))


def main(request: dict) -> None:
    """Write what was asked for."""
    pictures = [(title, Image.open(file).convert("RGB")) for title, file in request["pictures"]]
    if len({picture.size for _, picture in pictures}) == 1:
        sheet = draw_sheet(dict(pictures), {})
    else:  # a sheet of its own already, such as heat maps
        sheet = max((picture for _, picture in pictures), key=lambda p: p.width * p.height)
    sheet.save(request["sheet"], quality=QUALITY)
    edits = [p for title, p in pictures if title.startswith("edited")] or [sheet]
    source = [p for title, p in pictures if title == "source" and edits != [sheet]]
    for file, label in request["thumbnails"].items():
        draw_thumbnail([*source, edits[0]], label).save(file, quality=QUALITY)


if __name__ == "__main__":
    main(json.load(sys.stdin))
