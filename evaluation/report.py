"""What a run gives in the end: a table in the papers' columns, and every number as Parquet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .jobs import Result
from .measures import CORRECTED, PUBLISHED
from .networks import GROUPS
from .tables import markdown_table, percent

ALL = ""


class Column(NamedTuple):
    """A column of the papers' table; group: the network it needs, "" for none."""

    metric: str
    title: str
    scale: float
    digits: int
    group: str = ""


COLUMNS = (
    Column("distance", "structure ×10³ ↓", 1e3, 2, "distance"),
    Column("psnr", "PSNR ↑", 1, 2),
    Column("lpips", "LPIPS ×10³ ↓", 1e3, 2, "lpips"),
    Column("mse", "MSE ×10⁴ ↓", 1e4, 2),
    Column("ssim", "SSIM ×10² ↑", 1e2, 2),
    Column("clip_whole", "CLIP whole ↑", 1, 2, "clip"),
    Column("clip_edited", "CLIP edited ↑", 1, 2, "clip"),
)
HEADINGS = {
    PUBLISHED: "Published convention: what must stay, by blanking the rest of both pictures; "
    "structure on values of 0 to 255",
    CORRECTED: "Corrected: over the pixels that must stay only; structure on values of 0 to 1; "
    "CLIP of the edited part in its bounding box",
}


@dataclass
class Mean:
    """A mean over finite values, so that a table never holds all of them.

    exact: how many were infinite, the PSNR of what is equal: one such case would hide all others.
    """

    total: float = 0.0
    count: int = 0
    exact: int = 0

    def add(self, value: float | None) -> None:
        """Take in a value."""
        if value is None or math.isnan(value):
            return
        if math.isinf(value):
            self.exact += 1
            return
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean so far; nan if there is none, infinity if all were."""
        if self.count:
            return self.total / self.count
        return math.inf if self.exact else math.nan


@dataclass
class Means:
    """Means of one method over some cases."""

    metrics: dict[str, Mean] = field(default_factory=dict)
    seconds: Mean = field(default_factory=Mean)
    rows: Mean = field(default_factory=Mean)
    edited: int = 0
    failed: int = 0

    def add(self, result: Result) -> None:
        """Take in a case."""
        self.failed += bool(result.error)
        if result.error:
            return
        self.edited += 1
        self.seconds.add(result.seconds)
        self.rows.add(result.rows)
        for name, value in result.metrics.items():
            self.metrics.setdefault(name, Mean()).add(value)

    def get(self, name: str) -> float:
        """Return a metric's mean; nan if no case has it."""
        return self.metrics[name].value if name in self.metrics else math.nan


def average(results: Iterable[Result]) -> dict[tuple[str, str], Means]:
    """Average by method and type of edit; `ALL` stands for all types."""
    means: dict[tuple[str, str], Means] = {}
    for result in results:
        for type_name in (ALL, result.type_name):
            means.setdefault((result.method, type_name), Means()).add(result)
    return means


def make_report(
    title: str, means: Mapping[tuple[str, str], Means], absent: Mapping[str, str],
    extra: Sequence[str] = (),
) -> str:
    """Write the report: both conventions, what exact results allow, types, what is absent."""
    methods = list(dict.fromkeys(method for method, _ in means))
    types = list(dict.fromkeys(name for _, name in means if name != ALL))
    parts = [f"# {title}", *extra]
    for way, heading in HEADINGS.items():
        parts += [f"## {heading}", papers_table(way, methods, means, absent)]
    if any("exact_psnr" in one.metrics for one in means.values()):
        parts += ["## Against the exact result", exact_table(methods, means)]
    if len(types) > 1:
        parts += ["## By type: PSNR of what must stay (published | corrected)",
                  types_table(methods, types, means)]  # fmt: skip
    if any("right" in one.metrics for one in means.values()) and len(types) > 1:
        parts += ["## By type: edits that are right, %", right_table(methods, types, means)]
    parts += exact_notes(methods, means)
    notes = [f"- {GROUPS[group]}: absent, {reason}" for group, reason in absent.items()]
    if notes:
        parts += ["## Absent", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def papers_table(
    way: str, methods: Sequence[str], means: Mapping[tuple[str, str], Means],
    absent: Mapping[str, str],
) -> str:
    """Write the papers' columns in one convention."""
    headers = ["method", *(column.title for column in COLUMNS)]
    headers += ["s an image", "row-forwards", "edited", "failed"]

    def cells(one: Means) -> Iterator[str]:
        for column in COLUMNS:
            if column.group in absent:
                yield "absent"
            else:
                yield number(one.get(f"{way}_{column.metric}"), column.digits, column.scale)
        yield number(one.seconds.value, 1)
        yield number(one.rows.value, 0)
        yield str(one.edited)
        yield str(one.failed)

    return markdown_table(headers, [[name, *cells(means[name, ALL])] for name in methods])


def exact_notes(methods: Sequence[str], means: Mapping[tuple[str, str], Means]) -> list[str]:
    """Say which means of a PSNR leave out cases that are exact."""
    found = []
    for method in methods:
        for name, one in means[method, ALL].metrics.items():
            if one.exact and one.count:
                share = f"{one.exact} of {one.exact + one.count}"
                found.append(f"{method} {name.replace('_', ' ')}: {share}")
    return [f"Cases that are exact and left out of the mean: {'; '.join(found)}."] if found else []


def exact_table(methods: Sequence[str], means: Mapping[tuple[str, str], Means]) -> str:
    """Write how near edits are to the exact result, and how many the checker finds right."""
    headers = ["method", "PSNR to exact ↑", "SSIM to exact ×10² ↑", "right %", "all right %"]
    rows = []
    for name in methods:
        one = means[name, ALL]
        rows.append([
            name, number(one.get("exact_psnr"), 2), number(one.get("exact_ssim"), 2, 100),
            percent(one.get("right")), percent(one.get("all_right")),
        ])  # fmt: skip
    return markdown_table(headers, rows)


def types_table(
    methods: Sequence[str], types: Sequence[str], means: Mapping[tuple[str, str], Means]
) -> str:
    """Write the PSNR by type: parts that must stay differ so much that a mean hides types."""
    return by_type(methods, types, means, lambda one: " | ".join(
        number(one.get(f"{way}_psnr"), 1) for way in (PUBLISHED, CORRECTED)
    ).replace("|", "\\|"))  # fmt: skip


def right_table(
    methods: Sequence[str], types: Sequence[str], means: Mapping[tuple[str, str], Means]
) -> str:
    """Write the share of edits that are right by type."""
    return by_type(methods, types, means, lambda one: percent(one.get("right")))


def by_type(
    methods: Sequence[str], types: Sequence[str], means: Mapping[tuple[str, str], Means],
    show: Callable[[Means], str],
) -> str:
    """Write one cell for every method and type."""
    rows = [[name, *(show(means.get((name, kind), Means())) for kind in types)]
            for name in methods]  # fmt: skip
    return markdown_table(["method", *types], rows)


def number(value: float, digits: int, scale: float = 1.0) -> str:
    """Write a number; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return "exact" if math.isinf(value) else f"{value * scale:.{digits}f}"


def write_parquet(file: Path, results: Iterable[Result], metrics: Sequence[str]) -> None:
    """Write one row a case and method, a thousand at a time.

    Raises: ImportError if pyarrow is not installed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    texts = ("method", "case", "type", "error")
    schema = pa.schema([
        *((name, pa.string()) for name in texts), ("seconds", pa.float64()),
        ("row_forwards", pa.int64()), *((name, pa.float64()) for name in metrics),
    ])  # fmt: skip
    with parquet.ParquetWriter(file, schema) as writer:
        for chunk in chunks(results, 1000):
            rows = [row_of(result, metrics) for result in chunk]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def row_of(result: Result, metrics: Sequence[str]) -> dict[str, Any]:
    """Return a result's row."""
    row = {"method": result.method, "case": result.key, "type": result.type_name,
           "error": result.error, "seconds": result.seconds,
           "row_forwards": result.rows}  # fmt: skip
    return row | {name: result.metrics.get(name) for name in metrics}


def chunks(results: Iterable[Result], size: int) -> Iterator[list[Result]]:
    """Yield lists of at most `size`."""
    found: list[Result] = []
    for result in results:
        found.append(result)
        if len(found) == size:
            yield found
            found = []
    if found:
        yield found
