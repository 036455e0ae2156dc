"""Run by the host's own Python, which has Pillow and numpy: the pictures of the demo.

`python imaging.py ACTION` reads a JSON object from stdin and prints one as its last line:
scene    {scene, folder} -> draws a bundled scene; gives its prompts and files
prepare  {image, file, size} -> a copy of a user's picture in a size that the model takes
finish   {folder, pictures, captions, keep, exact} -> the sheet, and PSNRs in dB
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

MARGIN, LINE = 12, 18


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures in dB, over `where`."""
    difference = (first.astype(np.float64) - second.astype(np.float64)) ** 2
    error = difference.mean() if where is None else difference[where].mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def make_scene(scene: str, folder: str) -> dict[str, str]:
    """Draw a bundled scene and the exact target of its edit; mark the pixels that should stay."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from pack import load_pack

    load_pack()
    from retrace.demo.scenes import SCENES

    shown = SCENES[scene]
    keep = np.uint8(255) * ~shown.changed
    pictures = {"source": shown.image, "exact": shown.exact, "keep": keep}
    files = {name: str(Path(folder) / f"{name}.png") for name in pictures}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(files[name])
    return {"prompts": list(shown.prompts), **files}


def prepare(image: str, file: str, size: int) -> dict[str, list[int]]:
    """Write a copy of a picture, upright, in RGB, its middle cropped to a square of `size`."""
    with Image.open(image) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS).save(file)
    return {"was": list(picture.size), "size": [size, size]}


def finish(
    folder: str,
    pictures: dict[str, str],
    captions: dict[str, str],
    keep: str | None,
    exact: str | None,
) -> dict[str, float | str]:
    """Measure the pictures and put them side by side.

    pictures: name -> file, in the order of the sheet; source and edit must be there.
    keep: picture that is white where the edit should change nothing; without it, the pixels
    outside the picture "mask" are taken. exact: what the edit should be.
    """
    opened = {name: Image.open(file).convert("RGB") for name, file in pictures.items()}
    source = opened["source"]
    measured: dict[str, float | str] = {}
    arrays = {name: np.asarray(_as(picture, source.size)) for name, picture in opened.items()}
    if "reconstruction" in arrays:
        measured["reconstruction"] = psnr(arrays["reconstruction"], arrays["source"])
    where, meaning = None, "the pixels of the scene that should stay"
    if keep:
        where = np.asarray(Image.open(keep).convert("L")) > 127
    elif "mask" in opened:
        where, meaning = arrays["mask"][..., 0] < 128, "the pixels outside the mask"
    if where is not None and where.any():
        measured["outside"] = psnr(arrays["edit"], arrays["source"], where)
        measured["outside means"] = meaning
    if exact:
        measured["exact"] = psnr(arrays["edit"], np.asarray(Image.open(exact).convert("RGB")))
    sheet = str(Path(folder) / "sheet.png")
    draw_sheet(opened, captions).save(sheet)
    return {"sheet": sheet, **measured}


def draw_sheet(pictures: dict[str, Image.Image], captions: dict[str, str]) -> Image.Image:
    """Put pictures side by side with their names and captions under them."""
    width, height = next(iter(pictures.values())).size
    enlarge = max(1, 256 // width)
    width, height = width * enlarge, height * enlarge
    font = ImageFont.load_default(13)
    texts = {name: [name, *_wrap(captions.get(name, ""), width, font)] for name in pictures}
    lines = max(len(text) for text in texts.values())
    sheet = Image.new(
        "RGB",
        (MARGIN + len(pictures) * (width + MARGIN), height + 2 * MARGIN + lines * LINE),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for i, (name, picture) in enumerate(pictures.items()):
        left = MARGIN + i * (width + MARGIN)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, MARGIN))
        for row, text in enumerate(texts[name]):
            top = height + MARGIN + 4 + row * LINE
            draw.text((left, top), text, fill="black" if row == 0 else "dimgray", font=font)
    return sheet


def _wrap(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    columns = max(int(width / max(font.getlength("a"), 1)), 8)
    return textwrap.wrap(text, columns)


def _as(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a picture to the source's size: an autoencoder may have cut its border."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


if __name__ == "__main__":
    actions = {"scene": make_scene, "prepare": prepare, "finish": finish}
    print(json.dumps(actions[sys.argv[1]](**json.load(sys.stdin))))
