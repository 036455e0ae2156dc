"""Scenes-Bench: edits of drawn scenes with exact targets, in PIE-Bench's categories and format.

Of PIE-Bench's ten types it has those that a scene can express: objects changed, added and deleted,
position, colour, material (the background's pattern) and background. There is no type 0 (random),
4 (content) or 9 (style).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .pie_bench import IMAGES, MAPPING, encode_mask
from .scenes import (
    Background,
    EditCase,
    Scene,
    SceneObject,
    caption,
    remove_object,
    sample_scene,
    swap_cases,
)
from .scenes.vocabulary import CANVAS, COLUMNS


class Kind(NamedTuple):
    """One of PIE-Bench's types as scenes express it; instruction: filled with the case's words."""

    type_id: int
    folder: str
    attribute: str
    instruction: str


KINDS = (
    Kind(1, "1_change_object", "shape", "change the {before} into a {after}"),
    Kind(2, "2_add_object", "add", "add a {after}"),
    Kind(3, "3_delete_object", "delete", "remove the {before}"),
    Kind(5, "5_change_attribute_pose", "position", "move the {before} to the {word}"),
    Kind(6, "6_change_attribute_color", "colour", "make the {before} {word}"),
    Kind(7, "7_change_attribute_material", "pattern", "make the background {word}"),
    Kind(8, "8_change_background", "background", "make the background {word}"),
)
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SWAPPED = ("shape", "colour", "pattern", "background")


class BenchCase(NamedTuple):
    """An edit with its number in the benchmark, its kind and the words that may be blended."""

    key: str
    kind: Kind
    case: EditCase

    @property
    def words(self) -> tuple[str, str]:
        """The object before and after, as `phrases` gives it."""
        return phrases(self.case)

    @property
    def blended(self) -> str:
        """PIE-Bench's blended_word: one word of each prompt that marks what changes, or nothing."""
        before, after = edited_objects(self.case)
        if before is None or after is None or self.kind.attribute in ("pattern", "background"):
            return ""
        return f"{before.shape} {after.shape}"

    @property
    def instruction(self) -> str:
        """The edit as an order, for methods that take one."""
        before, after = self.words
        return self.kind.instruction.format(before=before, after=after, word=self.case.target_word)


def edited_objects(case: EditCase) -> tuple[SceneObject | None, SceneObject | None]:
    """Return the object that an edit changes, before and after."""
    before = None if case.attribute == "add" else case.source.objects[case.object_index]
    after = None if case.attribute == "delete" else case.target.objects[case.object_index]
    return before, after


def phrases(case: EditCase) -> tuple[str, str]:
    """Name the object that an edit changes before and after: "red circle", "red star".

    Empty where there is none: before an object is added, after it is deleted. A colour that the
    caption does not say is left out.
    """
    texts = (case.source_caption.split(), case.target_caption.split())
    before, after = (
        " ".join(word for word in (item.colour, item.shape) if word in text) if item else ""
        for item, text in zip(edited_objects(case), texts, strict=True)
    )
    return before, after


def bench_cases(per_kind: int = 30, seed: int = 20) -> list[BenchCase]:
    """Draw the benchmark: `per_kind` cases of each of the seven kinds (210), fixed by the seed."""
    found = []
    for number, kind in enumerate(KINDS):
        cases = draw(kind.attribute, per_kind, seed + number)
        found += [
            BenchCase(f"{kind.type_id}{14:02d}{serial:09d}", kind, case)
            for serial, case in enumerate(cases)
        ]
    return found


def draw(attribute: str, count: int, seed: int) -> list[EditCase]:
    """Draw edits of one attribute on held-out scenes."""
    if attribute in SWAPPED:
        return swap_cases(count, seed, (attribute,))
    rng = np.random.default_rng(seed)
    if attribute == "position":
        return [draw_move(rng) for _ in range(count)]
    return [draw_presence(rng, attribute) for _ in range(count)]


def draw_move(rng: np.random.Generator) -> EditCase:
    """Move a single object along one axis; the captions differ in the word of the place."""
    while True:
        source = sample_scene(rng, pair_probability=0.0)
        words = caption(source, "position").split()
        places = [word for word in OPPOSITES if word in words]
        if not places:  # in the middle: it takes more than one word to move it
            continue
        before = str(rng.choice(places))
        after = OPPOSITES[before]
        item = source.objects[0]
        moved = (
            dataclasses.replace(item, x=mirrored(item.x))
            if before in COLUMNS
            else dataclasses.replace(item, y=mirrored(item.y))
        )
        target = dataclasses.replace(source, objects=(moved,))
        texts = caption(source, "position"), caption(target, "position")
        if texts[1].split() == [after if word == before else word for word in words]:
            return EditCase(source, target, *texts, "position", before, after, 0)


def draw_reshapes(count: int, seed: int) -> list[EditCase]:
    """Draw shape swaps of single objects whose colour no caption says: only the picture has it."""
    found: list[EditCase] = []
    for case in swap_cases(6 * count, seed, ("shape",)):
        (item, *others) = case.source.objects
        if not others and len(found) < count:
            texts = (
                text.replace(f"a {item.colour} ", "a ", 1)
                for text in (case.source_caption, case.target_caption)
            )
            source, target = texts
            found.append(dataclasses.replace(case, source_caption=source, target_caption=target))
    return found


def mirrored(place: float) -> float:
    """Return a coordinate on the other side of the middle."""
    return CANVAS - place


def draw_presence(rng: np.random.Generator, attribute: str) -> EditCase:
    """Add an object to a scene of one, or delete one of two."""
    pair = sample_scene(rng, pair_probability=1.0)
    index = int(rng.integers(2))
    single = remove_object(pair, index)
    item = pair.objects[index]
    source, target = (single, pair) if attribute == "add" else (pair, single)
    word = f"{item.colour} {item.shape}"
    words = ("", word) if attribute == "add" else (word, "")
    return EditCase(source, target, caption(source), caption(target), attribute, *words, index)


def write(folder: Path, cases: Sequence[BenchCase]) -> Path:
    """Write cases as PIE-Bench does; return the mapping file.

    Beside PIE-Bench's fields each entry has `target_path` (the exact picture after the edit),
    `mask_size` (theirs is always 512 x 512) and `scenes`, from which a checker can be fed.
    """
    mapping = {}
    for case in cases:
        entry = describe(case)
        for name, picture in (("image_path", case.case.source_image),
                              ("target_path", case.case.target_image)):  # fmt: skip
            file = folder / IMAGES / entry[name]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        mapping[case.key] = entry
    path = folder / MAPPING
    path.write_text(json.dumps(mapping, indent=1), encoding="utf-8")
    return path


def describe(bench: BenchCase) -> dict:
    """Return the mapping file's entry of a case."""
    case = bench.case
    return {
        "image_path": f"{bench.kind.folder}/{bench.key}.png",
        "target_path": f"{bench.kind.folder}/{bench.key}_target.png",
        "original_prompt": case.source_caption,
        "editing_prompt": mark(case),
        "editing_instruction": bench.instruction,
        "editing_type_id": str(bench.kind.type_id),
        "blended_word": bench.blended,
        "mask": encode_mask(~case.keep_mask),
        "mask_size": list(case.keep_mask.shape),
        "attribute": case.attribute,
        "object_index": case.object_index,
        "scenes": [dataclasses.asdict(case.source), dataclasses.asdict(case.target)],
    }


def mark(case: EditCase) -> str:
    """Return the target caption with its changed words in brackets, as PIE-Bench writes them."""
    before, after = case.source_caption.split(), case.target_caption.split()
    if len(before) != len(after):
        return case.target_caption.replace(case.target_word, f"[{case.target_word}]", 1)
    pairs = zip(before, after, strict=True)
    return " ".join(new if old == new else f"[{new}]" for old, new in pairs)


def read_scenes(entry: dict) -> tuple[Scene, Scene]:
    """Return the scenes before and after an edit from a mapping file's entry."""
    return tuple(read_scene(scene) for scene in entry["scenes"])


def read_scene(entry: dict) -> Scene:
    """Return a scene from its description."""
    objects = tuple(SceneObject(**item) for item in entry["objects"])
    return Scene(Background(**entry["background"]), objects)
