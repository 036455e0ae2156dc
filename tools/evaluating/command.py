"""The command: data, methods, workers, then the report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hosting.errors import HostError
from hosting.layout import REPOSITORY, Host
from hosting.lock import exclusive
from hosting.progress import Progress
from hosting.setup import find_host
from retrace.diffusion.errors import RetraceError
from retrace.evaluation import edit_eval, pie_bench
from retrace.evaluation.jobs import Data, load_data
from retrace.evaluation.measures import PICTURE_GROUP
from retrace.evaluation.networks import Networks
from retrace.evaluation.runner import Run
from retrace.evaluation.scenes_bench import KINDS, bench_cases
from retrace.evaluation.scenes_bench import write as write_scenes
from retrace.evaluation.store import Store, data_fingerprint
from retrace.evaluation.worker import BUILT_IN

from .cluster import RayPool
from .judging import add_judge_arguments, judge_run, make_judge
from .plan import Plan
from .pools import LocalPool
from .reporting import finish

OURS = REPOSITORY / "evaluation" / "workflows"
Settings = dict[str, dict[str, Any]]
"""Values of widgets by the name of the workflow in which they are set."""


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="host.py evaluate", description="Edit a data set by a list of workflows and measure.",
        epilog="Run the same command again to go on where a run was stopped or killed.",
    )  # fmt: skip
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="a folder in PIE-Bench's or EditEval's format")
    data.add_argument("--scenes", type=int, metavar="N",
                      help="draw Scenes-Bench, N edits of each of its seven kinds")
    parser.add_argument("--methods", required=True,
                        help="workflow files or names of ours (evaluation/workflows), separated by "
                        f"commas; also {', '.join(BUILT_IN)}")
    parser.add_argument("--set", action="append", default=[], metavar="[METHOD.]NAME=VALUE",
                        help="give the widgets of that name another value, in all workflows or in "
                        "one; may be repeated, the last one counts")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument("--limit", type=int, help="only so many cases, evenly spread")
    parser.add_argument("--side", type=int, default=edit_eval.SIDE,
                        help="pixels that EditEval's pictures are brought to (512)")
    parser.add_argument("--networks", type=Path,
                        help="folder of dino-vitb8, clip-vit-large-patch14, squeezenet1_1*.pth")
    parser.add_argument("--workers", type=int, default=1, help="servers at work at once (1)")
    parser.add_argument("--ray", metavar="ADDRESS",
                        help="spread over a Ray cluster: its address, auto, or local; --workers "
                        "0 is one actor a GPU")
    parser.add_argument("--cores", type=int, default=1,
                        help="threads of each worker without a GPU (1); other numbers round "
                        "differently, so compare runs of the same")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--again", action="store_true", help="edit anew what failed before")
    parser.add_argument("--page", type=int, default=200,
                        help="cases on the page, evenly spread (200)")
    parser.add_argument("--sheet", type=int, default=8, help="rows of the contact sheet (8)")
    add_judge_arguments(parser)
    return parser.parse_args(arguments)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options, progress = read_arguments(arguments), Progress()
    out = options.out.absolute()
    try:
        with exclusive(out / "lock", lambda: progress.say(f"another run is at work in {out}")):
            return evaluate(options, out, progress)
    except (RetraceError, ValueError) as error:
        raise HostError(str(error)) from error


def evaluate(options: argparse.Namespace, out: Path, progress: Progress) -> int:
    """Edit, measure, judge and report."""
    methods = read_methods(options.methods)
    settings = read_settings(options.set, methods)
    judge = make_judge(options)
    data = limited(read_data(options, out), options.limit)
    for key, reason in data.damaged.items():
        progress.say(f"left out {key}: {reason}")
    if not data.cases:
        raise HostError(f"{data.folder} has no case that can be edited.")
    store = Store(out)
    store.claim(with_settings(methods, settings), fingerprint_of(data.folder))
    networks = Networks(options.networks)
    for group, reason in networks.absent.items():
        progress.say(f"{group} will be absent: {reason}")
    run = Run(data, list(methods), (PICTURE_GROUP, *networks.groups), store, options.again)
    if next(run.todo(), None) is not None:
        with make_pool(options, methods, settings, out, progress) as pool:
            pace = run.go(pool, progress.live)
        progress.say(f"{pace.done.total()} edits done, {pace.failed} failed")
    else:
        progress.say("all edits are there already")
    scores = judge_run(judge, run, out, progress) if judge else None
    finish(run, networks.absent, scores, options, progress)
    return 0


def read_methods(text: str) -> dict[str, Any]:
    """Return name -> workflow, None for a built-in method. Raises: HostError."""
    found: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        path = next((p for p in (Path(word), OURS / f"{word}.json") if p.is_file()), None)
        name = path.stem if path else word
        if name in found:
            raise HostError(f"two methods are called {name}: rename one of the files.")
        if path is None and word not in BUILT_IN:
            ours = sorted(file.stem for file in OURS.glob("*.json"))
            raise HostError(
                f"there is no workflow {word}: name a file, or one of {', '.join(ours)}, "
                f"{', '.join(BUILT_IN)}."
            )
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path else None
        except ValueError as error:
            raise HostError(f"the workflow {path} cannot be read ({error}).") from error
    if not found:
        raise HostError("no method was named: name workflow files with --methods.")
    return found


def read_settings(texts: Sequence[str], methods: dict[str, Any]) -> Settings:
    """Return the widgets that are set by workflow. Raises: HostError."""
    found: Settings = {name: {} for name, workflow in methods.items() if workflow is not None}
    for text in texts:
        place, equals, value = text.partition("=")
        method, _, widget = place.rpartition(".")
        if not (equals and widget):
            raise HostError(f"--set {text}: write NAME=VALUE or METHOD.NAME=VALUE.")
        if method and method not in found:
            raise HostError(f"--set {text}: no workflow {method} is among the methods.")
        try:
            given: Any = json.loads(value)
        except ValueError:
            given = value
        for name in [method] if method else found:
            found[name][widget] = given
    return {name: widgets for name, widgets in found.items() if widgets}


def with_settings(methods: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return what tells a method's results from those of the same workflow set otherwise."""
    return {
        name: {"workflow": workflow, "set": settings[name]} if name in settings else workflow
        for name, workflow in methods.items()
    }


def read_data(options: argparse.Namespace, out: Path) -> Data:
    """Read the data set, or draw it."""
    folder = options.data
    if folder is None:
        folder = out / "data"
        if not (folder / pie_bench.MAPPING).is_file():  # it is written last
            write_scenes(folder, bench_cases(options.scenes))
    data = load_data(folder.absolute(), options.side)
    if options.data is None and len(data.cases) != options.scenes * len(KINDS):
        raise HostError(f"{folder} holds {len(data.cases)} scenes: name another folder with --out.")
    return data


def limited(data: Data, limit: int | None) -> Data:
    """Return a data set with at most so many cases, evenly spread."""
    if limit is None or limit >= len(data.cases):
        return data
    keys = spread(list(data.cases), limit)
    return Data(data.folder, {key: data.cases[key] for key in keys}, data.damaged)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Choose at most `count` items, evenly apart."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def fingerprint_of(folder: Path) -> str:
    """Return a digest of what says which cases a data set has."""
    files = [folder / name for name in (pie_bench.MAPPING, edit_eval.WORKBOOK)]
    return data_fingerprint([file for file in files if file.is_file()])


def make_pool(
    options: argparse.Namespace, methods: dict[str, Any], settings: Settings, out: Path,
    progress: Progress,
) -> AbstractContextManager:
    """Return the workers that the command line asks for."""
    host: Host | None = None
    if any(workflow is not None for workflow in methods.values()):
        host = find_host(progress)
    if options.cores < 1:
        raise HostError("--cores must be 1 or more.")
    networks = options.networks and options.networks.absolute()
    plan = Plan(methods, host, out / "servers", options.cpu or None, networks, options.cores,
                settings)  # fmt: skip
    if options.ray:
        progress.say(f"asking the Ray cluster at {options.ray} for workers ...")
        return RayPool(plan, options.ray, options.workers, options.cores)
    if options.workers < 1:
        raise HostError("--workers must be 1 or more.")
    progress.say(f"{options.workers} worker{'s' * (options.workers > 1)} on this machine")
    return LocalPool(plan, options.workers)


