"""The judge's part of a run: one conversation a case, stored, and a table of means."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

from hosting.errors import HostError
from hosting.progress import Progress
from retrace.evaluation.judge import OVERALL, WEIGHTS, Judge, JudgeError
from retrace.evaluation.pie_bench import DamagedEntry
from retrace.evaluation.runner import Run
from retrace.evaluation.store import fingerprint, write
from retrace.evaluation.tables import markdown_table
from retrace.evaluation.worker import encode

KEY = "OPENAI_API_KEY"


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the judge's options."""
    parser.add_argument("--judge", metavar="URL",
                        help="LMM score by the OpenAI-compatible endpoint at this base URL; its "
                        f"key is read from {KEY}")
    parser.add_argument("--judge-model", help="which model of it judges")  # fmt: skip


def make_judge(options: argparse.Namespace) -> Judge | None:
    """Return the judge that the command line names. Raises: HostError."""
    if not options.judge:
        return None
    if not options.judge_model:
        raise HostError("--judge needs --judge-model: scores of two models are not comparable.")
    return Judge(options.judge, options.judge_model, os.environ.get(KEY, ""))


def judge_run(judge: Judge, run: Run, out: Path, progress: Progress) -> str:
    """Judge every case that all methods edited and that was not judged; return the table."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in run.methods}
    left_out, problems = 0, 0
    for number, key in enumerate(run.data.cases, 1):
        progress.live(f"judging {number} of {len(run.data.cases)} ({key})")
        edits = edits_of(run, key)
        if edits is None:
            left_out += 1
            continue
        try:
            verdict = judge_case(judge, run, key, edits, out)
        except (JudgeError, DamagedEntry) as error:
            progress.say(f"{key} was not judged: {error}")
            problems += 1
            continue
        for name, score in verdict.items():
            found[name].append(score)
    lines = [f"## LMM score by {judge.model}, mean ± standard deviation", table(found)]
    if left_out or problems:
        lines.append(
            f"{left_out} cases were left out because a method failed on them, {problems} because "
            "the judge gave no scores."
        )
    return "\n\n".join(lines)


def judge_case(
    judge: Judge, run: Run, key: str, edits: dict[str, bytes], out: Path
) -> dict[str, dict[str, float]]:
    """Return a case's scores by method: those stored for the same judge and edits, or new ones."""
    mark = fingerprint([judge.model, {name: data.hex() for name, data in edits.items()}])
    path = out / "judged" / f"{quote(key, safe='')}.json"
    known: Any = None
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
    if not known or known["edits"] != mark:
        case = run.data.cases[key]
        instruction = case.instruction or f"make it show {case.target_prompt}"
        verdict = judge.score(case.type_name, instruction, encode(case.image()), edits)
        known = {"edits": mark, "url": judge.url, **asdict(verdict)}
        write(path, json.dumps(known, indent=1).encode())
    return known["scores"]


def edits_of(run: Run, key: str) -> dict[str, bytes] | None:
    """Return the edits of a case by method; None if a method failed, for scores are relative."""
    edits = {}
    for name in run.methods:
        result = run.store.read(name, key)
        if result is None or result.error:
            return None
        edits[name] = run.store.picture(name, key).read_bytes()
    return edits


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Write the means over cases."""
    names = [OVERALL, *WEIGHTS]
    rows = [
        [method, *(spread_of([score[name] for score in scores]) for name in names),
         str(len(scores))]
        for method, scores in found.items()
    ]  # fmt: skip
    return markdown_table(["method", *names, "cases"], rows)


def spread_of(values: list[float]) -> str:
    """Write a mean and a standard deviation."""
    if not values:
        return "–"
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"
