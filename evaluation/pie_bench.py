"""PIE-Bench's format: a folder of pictures and a mapping file of prompts, types and masks.

Source: Ju et al. 2023 (arXiv:2310.01506), PnPInversion's data; Scenes-Bench is written in it too.
Entries that are damaged are left out and named with their reason; the others are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAPPING, IMAGES = "mapping_file.json", "annotation_images"
SIZE = (512, 512)  # of every mask of PIE-Bench
TYPES = {
    "0": "random",
    "1": "change object",
    "2": "add object",
    "3": "delete object",
    "4": "change content",
    "5": "change pose",
    "6": "change colour",
    "7": "change material",
    "8": "change background",
    "9": "change style",
}
NEEDED = ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask")


class DamagedEntry(ValueError):
    """An entry that cannot be used, with the reason."""


@dataclass(frozen=True)
class PieCase:
    """One edit: picture file, prompts without brackets, and what is to change.

    edited_words: what stood in brackets in the target prompt. blended: a word of each prompt that
    marks the change, or None. runs: the mask's start and length pairs over `size` (rows, columns).
    entry: everything that the mapping file says, for fields that only some data sets have.
    """

    key: str
    image_path: Path
    source_prompt: str
    target_prompt: str
    edited_words: tuple[str, ...]
    instruction: str
    type_id: str
    blended: tuple[str, str] | None
    runs: tuple[int, ...]
    size: tuple[int, int]
    entry: Mapping[str, Any] = field(repr=False)

    @property
    def type_name(self) -> str:
        """PIE-Bench's name of the edit's type."""
        return TYPES[self.type_id]

    def image(self) -> np.ndarray:
        """Read the picture, uint8 "height width 3". Raises: DamagedEntry if it is broken."""
        try:
            with Image.open(self.image_path) as opened:
                return np.asarray(opened.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise DamagedEntry(f"{self.image_path.name} cannot be decoded: {error}") from error

    def mask(self) -> np.ndarray:
        """Give where the edit may happen, bool "height width"; its border always may."""
        return decode_mask(self.runs, self.size)


@dataclass(frozen=True)
class PieBench:
    """What a folder holds: usable cases in the file's order, and damaged ones with reasons."""

    cases: tuple[PieCase, ...]
    damaged: Mapping[str, str]

    def __iter__(self) -> Iterator[PieCase]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)


def load(folder: Path) -> PieBench:
    """Read a data set's mapping file; pictures are opened (not decoded) to see that they are there.

    Raises: ValueError when the folder has no mapping file, or one that is not a JSON object.
    """
    path = folder / MAPPING
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MAPPING}; name the folder that holds it") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(mapping, dict):
        found = type(mapping).__name__
        raise ValueError(f"{path} must be an object of entries by id, not a {found}")
    cases, damaged = [], {}
    for key, entry in mapping.items():
        try:
            cases.append(read_entry(folder, key, entry))
        except DamagedEntry as error:
            damaged[key] = str(error)
    return PieBench(tuple(cases), damaged)


def read_entry(folder: Path, key: str, entry: Any) -> PieCase:
    """Read one entry. Raises: DamagedEntry saying what is wrong with it."""
    if not isinstance(entry, dict):
        raise DamagedEntry(f"the entry is a {type(entry).__name__}, not an object")
    missing = [name for name in NEEDED if name not in entry]
    if missing:
        raise DamagedEntry(f"the entry lacks {', '.join(missing)}")
    type_id = str(entry["editing_type_id"])
    if type_id not in TYPES:
        raise DamagedEntry(f"unknown editing_type_id {type_id!r}; known are 0 to 9")
    source, target = (read_prompt(entry, name) for name in ("original_prompt", "editing_prompt"))
    size = read_size(entry.get("mask_size", SIZE))
    runs = read_runs(entry["mask"], size)
    image_path = folder / IMAGES / str(entry["image_path"])
    if not image_path.resolve().is_relative_to((folder / IMAGES).resolve()):
        raise DamagedEntry(f"image_path {entry['image_path']!r} leads out of {IMAGES}")
    check_image(image_path, size)
    return PieCase(
        key=key,
        image_path=image_path,
        source_prompt=strip_brackets(source),
        target_prompt=strip_brackets(target),
        edited_words=bracketed(target),
        instruction=str(entry.get("editing_instruction", "")),
        type_id=type_id,
        blended=read_blended(entry.get("blended_word", "")),
        runs=runs,
        size=size,
        entry=entry,
    )


def read_prompt(entry: dict, name: str) -> str:
    """Return a prompt with its brackets."""
    text = entry[name]
    if not isinstance(text, str) or not strip_brackets(text):
        raise DamagedEntry(f"{name} is empty or no text")
    return text


def strip_brackets(text: str) -> str:
    """Return a prompt without the brackets that mark edited words."""
    return text.replace("[", "").replace("]", "").strip()


def bracketed(text: str) -> tuple[str, ...]:
    """Return the phrases that stand in brackets; an open bracket without an end marks nothing."""
    parts = text.split("[")[1:]
    return tuple(part.split("]")[0].strip() for part in parts if "]" in part)


def read_blended(value: Any) -> tuple[str, str] | None:
    """Return the two words of a blended_word, or None if it is empty."""
    words = value.split(" ") if isinstance(value, str) else None
    if words == [""]:
        return None
    if words is None or len(words) < 2 or not all(words[:2]):
        raise DamagedEntry(f"blended_word {value!r} is not two words with one space between")
    return words[0], words[1]


def read_size(value: Any) -> tuple[int, int]:
    """Return a mask's rows and columns."""
    if not is_integers(value) or len(value) != 2 or min(value) < 1:
        raise DamagedEntry(f"mask_size {value!r} is not two positive whole numbers")
    return int(value[0]), int(value[1])


def read_runs(value: Any, size: tuple[int, int]) -> tuple[int, ...]:
    """Return a mask's run lengths. Raises: DamagedEntry when they are not start, length pairs."""
    if not is_integers(value):
        raise DamagedEntry("the mask is not a list of whole numbers")
    if len(value) % 2:
        raise DamagedEntry(f"the mask has {len(value)} numbers; starts and lengths come in pairs")
    starts, lengths = value[::2], value[1::2]
    pixels = size[0] * size[1]
    if any(not 0 <= start < pixels for start in starts) or any(run < 0 for run in lengths):
        raise DamagedEntry(f"the mask has a run outside its {size[0]} x {size[1]} pixels")
    return tuple(value)


def is_integers(value: Any) -> bool:
    """Tell whether a value is a sequence of whole numbers."""
    return isinstance(value, list | tuple) and all(
        isinstance(number, int) and not isinstance(number, bool) for number in value
    )


def check_image(path: Path, size: tuple[int, int]) -> None:
    """Raise DamagedEntry unless a file begins as a picture of the mask's size."""
    if not path.is_file():
        raise DamagedEntry(f"the picture {path.name} is missing")
    try:
        with Image.open(path) as opened:
            found = (opened.height, opened.width)
    except (OSError, SyntaxError) as error:
        raise DamagedEntry(f"{path.name} is not a picture: {error}") from None
    if found != size:
        raise DamagedEntry(
            f"the picture is {found[0]} x {found[1]} but its mask {size[0]} x {size[1]}"
        )


def decode_mask(
    runs: Sequence[int], size: tuple[int, int] = SIZE, border: bool = True
) -> np.ndarray:
    """Give a mask, bool "height width", from start and length pairs over its pixels row by row.

    Lengths are cut at the end. border: set the outermost pixels, as published, since annotations
    often miss them.
    """
    mask = np.zeros(size[0] * size[1], bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = True
    mask = mask.reshape(size)
    if border:
        mask[[0, -1]] = True
        mask[:, [0, -1]] = True
    return mask


def encode_mask(mask: np.ndarray) -> list[int]:
    """Write a mask as start and length pairs over its pixels row by row."""
    edges = np.flatnonzero(np.diff(np.pad(mask.reshape(-1).astype(np.int8), 1)))
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], axis=1).reshape(-1).tolist()
