"""What the benches of edits share: cases spread over worker processes, scores gathered."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pack import ROOT
from retrace.evaluation.scenes import EditCase
from retrace.evaluation.scores import Score, score_batch
from training.host import use_host

WEIGHTS = ROOT / "demo" / "retrace-demo.safetensors"


class Entry(NamedTuple):
    """One line of a table: its name, the method's name in `evaluation.methods`, its settings."""

    label: str
    method: str
    settings: Any


class Task(NamedTuple):
    """A batch of cases for one worker, to be edited by every entry."""

    numbers: tuple[int, ...]
    cases: tuple[EditCase, ...]
    entries: tuple[Entry, ...]
    pictured: frozenset[int]


@dataclass
class Results:
    """Scores of all cases, and the pictures that were asked for: (entry, case) -> uint8."""

    scores: list[Score] = field(default_factory=list)
    pictures: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)


def add_arguments(
    parser: argparse.ArgumentParser, count: int, batch: int, kind: str = "unet"
) -> None:
    """Add the arguments that all benches of edits take. kind: the demo model that is used."""
    parser.set_defaults(kind=kind)
    parser.add_argument("--n", type=int, default=count, help=f"held-out scenes ({count})")
    parser.add_argument("--batch", type=int, default=batch, help=f"pictures at once ({batch})")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                        help="one-thread processes (one a core)")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out scenes (0)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="another demo model")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this PNG")
    parser.add_argument("--pictures", type=int, default=8, help="rows of the contact sheet (8)")
    parser.add_argument("--json", type=Path, help="write all scores to this file")  # fmt: skip


def run_cases(
    cases: Sequence[EditCase], entries: Sequence[Entry], options: argparse.Namespace,
    pictured: Sequence[int] = (),
) -> Results:  # fmt: skip
    """Edit all cases by all entries; scores are ordered by entry, then by case."""
    prepare(str(options.weights), None, options.kind)
    from retrace.evaluation.workbench import batches

    groups = batches(STATE["demo"].clip, cases, options.batch)
    tasks = [
        Task(tuple(group), tuple(cases[i] for i in group), tuple(entries), frozenset(pictured))
        for group in groups
    ]
    results, started = Results(), time.monotonic()
    for done, part in enumerate(spread(tasks, options), 1):
        results.scores += part.scores
        results.pictures |= part.pictures
        spent = time.monotonic() - started
        finished = len({score.case for score in results.scores})
        left = spent * (len(cases) - finished) / max(finished, 1)
        print(f"\rbatch {done} of {len(tasks)}, {spent:.0f} s, about {left:.0f} s left ",
              end="", file=sys.stderr, flush=True)  # fmt: skip
    print(file=sys.stderr)
    order = {entry.label: i for i, entry in enumerate(entries)}
    results.scores.sort(key=lambda score: (order[score.method], score.case))
    return results


def spread(tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[Results]:
    """Yield the results of tasks as they come, from worker processes or from this one."""
    if options.workers <= 1 or torch.cuda.is_available():
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, prepare, (str(options.weights), 1, options.kind)) as pool:
        yield from pool.imap_unordered(work, tasks)


STATE: dict[str, Any] = {}
"""The loaded model of this process."""


def prepare(weights: str, threads: int | None, kind: str = "unet") -> None:
    """Load the demo model of a kind into this process, once; `weights` are those of the UNet's."""
    if threads:
        torch.set_num_threads(threads)
    if "demo" not in STATE:
        use_host()
        from retrace.demo.bundle import load_demo

        STATE["demo"] = load_demo(Path(weights)) if kind == "unet" else load_demo(kind=kind)


@torch.inference_mode()
def work(task: Task) -> Results:
    """Edit one batch by every entry and score what comes out."""
    from retrace.evaluation import methods, workbench

    bench = workbench.Workbench(STATE["demo"], task.cases, task.entries[0].settings)
    results = Results()
    round_trip = bench.decode(bench.latent["samples"])
    for label, name, settings in task.entries:
        bench.settings = settings
        outcome = methods.METHODS[name](bench)
        edited, source = bench.pictures(outcome)
        results.scores += score_batch(
            label, task.numbers, task.cases, edited, source, round_trip, outcome.rows,
            outcome.seconds,
        )  # fmt: skip
        for number, picture in zip(task.numbers, edited, strict=True):
            if number in task.pictured:
                results.pictures[label, number] = np.uint8(picture.clamp(0, 1) * 255 + 0.5)
    return results
