"""What a run leaves: report.md, results.parquet, sheet.jpg and index.html."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hosting.progress import Progress
from PIL import Image
from retrace.evaluation import sheets
from retrace.evaluation.page import write_page
from retrace.evaluation.pie_bench import DamagedEntry
from retrace.evaluation.report import average, make_report, write_parquet
from retrace.evaluation.runner import Run


def finish(
    run: Run, absent: Mapping[str, str], scores: str | None, options: argparse.Namespace,
    progress: Progress,
) -> None:
    """Write everything and print the report; scores: the judge's table, if one was asked."""
    from .command import spread

    out, keys = run.store.folder, list(run.data.cases)
    means = average(run.results())
    title = f"{len(keys)} cases of {run.data.folder.name}, {len(run.methods)} methods"
    extra = [f"{len(run.data.damaged)} damaged entries were left out."] if run.data.damaged else []
    text = make_report(title, means, absent, extra)
    if scores:
        text += f"\n{scores}\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    metrics = sorted({name for one in means.values() for name in one.metrics})
    try:
        write_parquet(out / "results.parquet", run.results(), metrics)
    except ImportError:
        progress.say("results.parquet was not written: `pip install pyarrow`, and run this again")
    write_sheet(run, spread(keys, options.sheet))
    write_page(out / "index.html", title, run.data, spread(keys, options.page), run.methods,
               run.store)  # fmt: skip
    progress.say(text)
    progress.say(f"report.md, results.parquet, sheet.jpg, index.html and every edit are in {out}")


def write_sheet(run: Run, keys: Sequence[str]) -> None:
    """Write the contact sheet of some cases."""
    rows, exact = [], False
    for key in keys:
        case = run.data.cases[key]
        try:
            source, target = case.image(), run.data.exact(case)
        except DamagedEntry:
            continue
        edits = [picture_of(run, name, key, source) for name in run.methods]
        exact = exact or target is not None
        rows.append((f"{case.type_name}\n{case.target_prompt}", source, edits, target))
    columns = ["source", *run.methods, *["exact result"] * exact]
    sheets.contact_sheet(columns, [
        (caption, [source, *edits, *[blank(source) if target is None else target] * exact])
        for caption, source, edits, target in rows
    ]).save(run.store.folder / "sheet.jpg", quality=88)  # fmt: skip


def picture_of(run: Run, method: str, key: str, source: np.ndarray) -> np.ndarray:
    """Return an edit, a blank picture where there is none."""
    path = run.store.picture(method, key)
    result = run.store.read(method, key)
    if result is None or result.error or not path.is_file():
        return blank(source)
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def blank(like: np.ndarray) -> Any:
    """Return a white picture."""
    return np.full_like(like, 255)
