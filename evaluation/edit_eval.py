"""EditEval's format: a folder of pictures a task, and a workbook of prompts and instructions.

Source: Huang et al. 2025 (arXiv:2402.17525), EditEval v1 and v2. The n-th row under a task's
heading belongs to the picture whose name is n. There are no masks: nothing says what must stay.
"""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps

from .pie_bench import DamagedEntry

WORKBOOK = "editing_prompts_collection.xlsx"
SIDE = 512
SHEET = {"s": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class EditEvalCase:
    """One edit; fields as `pie_bench.PieCase` has them, without a mask and blended words."""

    key: str
    image_path: Path
    source_prompt: str
    target_prompt: str
    instruction: str
    type_name: str
    side: int = SIDE
    blended: None = None
    entry: Mapping = ()

    def image(self) -> np.ndarray:
        """Read the picture, its middle cut to a square, uint8 "side side 3"."""
        try:
            with Image.open(self.image_path) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DamagedEntry(f"{self.image_path.name} cannot be decoded: {error}") from error
        return np.asarray(ImageOps.fit(upright, (self.side,) * 2, Image.Resampling.LANCZOS))

    def mask(self) -> None:
        """EditEval does not say where an edit may happen."""


def load(folder: Path, side: int = SIDE) -> tuple[list[EditEvalCase], dict[str, str]]:
    """Read a folder; return its cases, and its damaged rows with their reasons by key.

    Raises: ValueError if the workbook cannot be read.
    """
    cases: list[EditEvalCase] = []
    damaged: dict[str, str] = {}
    task, number = "", 0
    for heading, source, target, instruction in read_rows(folder / WORKBOOK):
        if heading:
            task, number = heading, 0
        texts = (source, target, instruction)
        if not any(texts) or (target.lower(), instruction.lower()) == TITLES:
            continue
        number += 1
        key = f"{task.lower().replace(' ', '_')}/{number}"
        try:
            if not all(texts):
                raise DamagedEntry("a prompt or the instruction is empty")
            path = find_picture(folder, task, number)
        except DamagedEntry as error:
            damaged[key] = str(error)
            continue
        cases.append(EditEvalCase(key, path, *texts, task.lower(), side))
    return cases, damaged


TITLES = ("target prompt", "instruction")


def find_picture(folder: Path, task: str, number: int) -> Path:
    """Return the picture of a task's row; folders may be spelled a little differently."""
    wanted = task.lower().replace(" ", "_")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    near = difflib.get_close_matches(wanted, names, 1, 0.8)  # v1 writes "object_removel"
    if not near:
        raise DamagedEntry(f"there is no folder for the task {task!r}")
    found = [folder / near[0] / f"{number}{ending}" for ending in PICTURES]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise DamagedEntry(f"{near[0]} has no picture {number}")
    return path


def read_rows(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the first four columns of a workbook's first sheet as texts.

    Raises: ValueError if the file is no workbook.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            shared = read_shared(archive)
            sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    except (OSError, KeyError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise ValueError(f"{file} cannot be read as a workbook: {error}") from error
    for row in sheet.iterfind(".//s:row", SHEET):
        cells = {re.sub(r"\d", "", cell.get("r", "")): text_of(cell, shared) for cell in row}
        yield tuple(cells.get(column, "").strip() for column in "ABCD")


def read_shared(archive: zipfile.ZipFile) -> list[str]:
    """Return the texts that cells name by number."""
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    table = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
    return [all_text(item) for item in table.iterfind("s:si", SHEET)]


def text_of(cell: ElementTree.Element, shared: list[str]) -> str:
    """Return a cell's text."""
    if cell.get("t") == "inlineStr":
        return all_text(cell)
    value = cell.findtext("s:v", "", SHEET)
    return shared[int(value)] if cell.get("t") == "s" and value else value


def all_text(element: ElementTree.Element) -> str:
    """Join the texts of an element, which may be of several styles."""
    return "".join(part.text or "" for part in element.iterfind(".//s:t", SHEET))
