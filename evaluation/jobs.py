"""What a runner hands to a worker and gets back: one case to edit by one method, and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..diffusion.errors import RetraceError
from . import edit_eval, pie_bench
from .edit_eval import EditEvalCase
from .pie_bench import IMAGES, MAPPING, PieCase

Case = PieCase | EditEvalCase


class EditError(RetraceError):
    """A method cannot edit this case; the others go on."""


class Edit(NamedTuple):
    """A method's picture, uint8 "height width 3", and what it cost; rows: None if unknown."""

    picture: np.ndarray
    seconds: float = 0.0
    rows: int | None = None


@dataclass(frozen=True)
class Job:
    """One case with all that a worker on another machine needs.

    source, exact: uint8 "height width 3"; exact: the perfect result, None if unknown. mask: bool
    "height width", where the edit may happen, None if the data does not say. edited: PNG of an
    earlier run, to be measured only. groups: names of the groups of metrics to compute.
    """

    method: str
    key: str
    type_name: str
    source_prompt: str
    target_prompt: str
    instruction: str
    blended: tuple[str, str] | None
    source: np.ndarray
    mask: np.ndarray | None
    exact: np.ndarray | None
    entry: Mapping[str, Any]
    groups: tuple[str, ...] = ()
    edited: bytes | None = None


@dataclass(frozen=True)
class Result:
    """What came of a job. error: a sentence, "" if all went well; groups: those measured so far."""

    method: str
    key: str
    type_name: str
    seconds: float = 0.0
    rows: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    error: str = ""
    picture: bytes | None = None


@dataclass(frozen=True)
class Data:
    """A data set: its folder, its cases by key, and entries that are damaged, with reasons."""

    folder: Path
    cases: Mapping[str, Case]
    damaged: Mapping[str, str]

    def exact(self, case: Case) -> np.ndarray | None:
        """Read the perfect result of a case, where the data has it."""
        name = dict(case.entry).get("target_path")
        if not name:
            return None
        path = (self.folder / IMAGES / name).resolve()
        if not path.is_relative_to((self.folder / IMAGES).resolve()):
            raise pie_bench.DamagedEntry(f"target_path {name!r} leads out of {IMAGES}")
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise pie_bench.DamagedEntry(f"{name} cannot be decoded: {error}") from error

    def job(self, case: Case, method: str, groups: Sequence[str], edited: bytes | None) -> Job:
        """Read a case's pictures. Raises: DamagedEntry if one of them is broken."""
        return Job(
            method, case.key, case.type_name, case.source_prompt, case.target_prompt,
            case.instruction, case.blended, case.image(), case.mask(), self.exact(case),
            dict(case.entry), tuple(groups), edited,
        )  # fmt: skip


def load_data(folder: Path, side: int = edit_eval.SIDE) -> Data:
    """Read a folder in PIE-Bench's or EditEval's format.

    Raises: ValueError if it is in neither.
    """
    if (folder / MAPPING).is_file():
        bench = pie_bench.load(folder)
        return Data(folder, {case.key: case for case in bench}, bench.damaged)
    if (folder / edit_eval.WORKBOOK).is_file():
        cases, damaged = edit_eval.load(folder, side)
        return Data(folder, {case.key: case for case in cases}, damaged)
    raise ValueError(
        f"{folder} has neither {MAPPING} (PIE-Bench, Scenes-Bench) nor {edit_eval.WORKBOOK} "
        "(EditEval): name the folder that holds one of them"
    )
