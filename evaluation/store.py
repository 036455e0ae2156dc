"""The results of a run on disk: a picture and a record a case, so that a killed run can go on.

A record is written after its picture, each under another name first and then renamed: what is there
is whole. Only one process writes; workers hand their results to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..diffusion.errors import RetraceError
from .jobs import Result

DONE = "records"
PICTURES = "edits"


class StoreError(RetraceError):
    """The folder holds results of something else."""


class Store:
    """Results under a folder: `edits/METHOD/CASE.png`, `records/METHOD/CASE.json`, `run.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, methods: Mapping[str, Any], data: str) -> None:
        """Note what is run here; methods may be added later, but not changed.

        methods: name to workflow. data: fingerprint of the data set.
        Raises: StoreError if the folder holds results of another data set or another workflow.
        """
        path = self.folder / "run.json"
        prints = {name: fingerprint(workflow) for name, workflow in methods.items()}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("data", data) != data:
            raise StoreError(
                f"{self.folder} holds results of other data: name another folder with --out"
            )
        for name, mark in known.get("methods", {}).items():
            if prints.get(name, mark) != mark:
                raise StoreError(
                    f"{self.folder} holds results of another workflow called {name}: rename the "
                    "workflow, or name another folder with --out"
                )
        merged = {**known.get("methods", {}), **prints}
        write(path, json.dumps({"data": data, "methods": merged}, indent=1).encode())
        for name, workflow in methods.items():
            write(self.folder / "methods" / f"{quote(name, safe=' +')}.json",
                  json.dumps(workflow, indent=1).encode())  # fmt: skip

    def picture(self, method: str, key: str) -> Path:
        """Return where the edited picture of a case is."""
        return self.folder / PICTURES / quote(method, safe=" +") / f"{quote(key, safe='')}.png"

    def record(self, method: str, key: str) -> Path:
        """Return where the record of a case is."""
        return self.folder / DONE / quote(method, safe=" +") / f"{quote(key, safe='')}.json"

    def save(self, result: Result) -> None:
        """Write a result, its picture first."""
        if result.picture is not None:
            write(self.picture(result.method, result.key), result.picture)
        entry = asdict(result)
        del entry["picture"]
        entry["metrics"] = {name: to_json(value) for name, value in result.metrics.items()}
        write(self.record(result.method, result.key), json.dumps(entry).encode())

    def read(self, method: str, key: str) -> Result | None:
        """Return a case's result without its picture; None if it is not there or not whole."""
        try:
            entry = json.loads(self.record(method, key).read_bytes())
            entry["metrics"] = {name: from_json(v) for name, v in entry["metrics"].items()}
            entry["groups"] = tuple(entry["groups"])
            return Result(**entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def missing(self, method: str, key: str, groups: Iterable[str]) -> tuple[str, ...] | None:
        """Return the groups of metrics that a case still lacks, None if it has to be edited."""
        result = self.read(method, key)
        if result is None:
            return None
        if result.error:
            return ()
        return tuple(name for name in groups if name not in result.groups)


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def fingerprint(value: Any) -> str:
    """Return a digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def to_json(value: float) -> float | str | None:
    """Return a number as JSON has it: nan is null, infinity a word."""
    if math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else "inf" if value > 0 else "-inf"


def from_json(value: float | str | None) -> float:
    """Return the number that `to_json` wrote."""
    return math.nan if value is None else float(value)


def data_fingerprint(files: Sequence[Path]) -> str:
    """Return a digest of the files that say what a data set holds."""
    return fingerprint([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
