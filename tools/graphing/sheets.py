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
from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE = 384
QUALITY = 88


def draw_thumbnail(pictures: list[Image.Image], label: str) -> Image.Image:
    """Show the last picture, the first small in its corner, and the model family's name.

    Square, as the template browser shows them.
    """
    thumbnail = _fit(pictures[-1], SIDE)
    if len(pictures) > 1:
        inset = ImageOps.expand(_fit(pictures[0], SIDE * 3 // 8), 4, "white")
        thumbnail.paste(inset, (8, SIDE - inset.height - 8))
    if label:
        draw, font = ImageDraw.Draw(thumbnail), ImageFont.load_default(26)
        width = int(font.getlength(label)) + 20
        draw.rectangle((SIDE - width, 0, SIDE, 40), fill=(20, 20, 24))
        draw.text((SIDE - width + 10, 4), label, fill="white", font=font)
    return thumbnail


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Bring a picture to a square: small ones keep their pixels sharp."""
    grown = picture.height < side
    method = Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, (side, side), method, centering=(0, 0))


def main(request: dict) -> None:
    """Write what was asked for."""
    pictures = [(title, Image.open(file).convert("RGB")) for title, file in request["pictures"]]
    alike = [(title, p) for title, p in pictures if p.size == pictures[0][1].size]
    if len(alike) > 1:
        sheet = draw_sheet(dict(alike), {})
    else:  # a sheet of its own already, such as heat maps
        sheet = max((picture for _, picture in pictures), key=lambda p: p.width * p.height)
    sheet.save(request["sheet"], quality=QUALITY)
    edits = [p for title, p in pictures if title.startswith("edited")] or [sheet]
    source = [p for title, p in pictures if title == "source" and edits != [sheet]]
    for file, label in request["thumbnails"].items():
        draw_thumbnail([*source, edits[0]], label).save(file, quality=QUALITY)


if __name__ == "__main__":
    main(json.load(sys.stdin))
