"""One-word swaps on held-out scenes: what Direct Inversion and Prompt-to-Prompt each are worth.

Every scene is edited by every method with the same steps, cfg and windows. The captions say
neither size nor place, so that these can only come from the source picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from pack import ROOT
from retrace.evaluation import sheets, tables
from retrace.evaluation.scenes import EditCase, swap_cases
from retrace.evaluation.scores import Summary, summarise
from retrace.evaluation.settings import Settings

from .common import Entry, Results, add_arguments, run_cases

METHODS = (
    "autoencoder, source",
    "autoencoder, exact target",
    "plain DDIM",
    "P2P",
    "DirectInversion + P2P",
)
CEILING, PLAIN, FREE, DIRECT = METHODS[0], METHODS[2], METHODS[3], METHODS[4]
SWEEP_SEED = 1000
SWEEP = {"cfg": (2.0, 3.0, 5.0, 7.5), "cross": (0.2, 0.4), "self_": (0.2, 0.4, 0.6)}


def main(arguments: Sequence[str]) -> int:
    """Print the table (or that of a sweep over cfg and windows); return the exit status."""
    options = read_arguments(arguments)
    if options.sweep:
        return sweep(options)
    cases = swap_cases(options.n, options.seed, options.attributes.split(","))
    settings = make_settings(options)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    pictured = range(min(options.pictures, options.n)) if options.sheet else ()
    results = run_cases(cases, entries, options, pictured)
    summaries = summarise(results.scores)
    table = make_table(summaries)
    print(title := describe(options), table, *verdicts(summaries), sep="\n\n")
    if options.readme:
        tables.fill(ROOT / "README.md", "edits", f"{title}\n\n{table}")
    if options.sheet:
        save_sheet(options.sheet, cases, results, pictured, [e.label for e in entries])
    if options.json:
        save_scores(options.json, results)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench edits", description=__doc__)
    add_arguments(parser, count=200, batch=20)
    add_setting_arguments(parser)
    parser.add_argument("--attributes", default="colour,shape",
                        help="what is swapped, in turn: colour, shape, background, pattern")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    parser.add_argument("--sweep", action="store_true",
                        help=f"try cfg and windows on other scenes (seed {SWEEP_SEED})")
    return parser.parse_args(arguments)  # fmt: skip


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the parameters that all methods of a table share."""
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=5.0, help="guidance of every edit (5)")
    parser.add_argument("--cross", type=float, default=0.4, help="cross window of P2P (0.4)")
    parser.add_argument("--self", type=float, default=0.6, dest="self_", help="self window (0.6)")


def make_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the command line asks for."""
    return Settings(options.steps, options.cfg, options.cross, options.self_)


def describe(options: argparse.Namespace) -> str:
    """Say in one line what was run."""
    return (
        f"{options.n} held-out scenes, one word swapped, {options.steps} steps, cfg {options.cfg:g}"
        f" for every method, windows cross {options.cross:g} and self {options.self_:g}; one CPU "
        "thread a process."
    )


def make_table(summaries: Sequence[Summary], reconstruction: bool = False) -> str:
    """Write the table of a comparison."""
    attributes = list(summaries[0].right)
    headers = [
        "method",
        *(f"{name} right %" for name in attributes),
        "all right %",
        *(["reconstruction dB"] if reconstruction else []),
        "what must stay dB",
        "(published way)",
        "SSIM",
        "to exact target dB",
        "row-forwards",
        "s a picture",
    ]
    rows = [
        [
            one.method,
            *(tables.percent(one.right.get(name)) for name in attributes),
            tables.percent(one.all_right),
            *([tables.decibel(one.reconstruction)] if reconstruction else []),
            tables.decibel(one.keep),
            tables.decibel(one.keep_published),
            f"{one.keep_ssim:.3f}",
            tables.decibel(one.exact),
            "–" if one.rows == (0, 0) else f"{one.rows[0]} + {one.rows[1]}",
            "–" if one.rows == (0, 0) else f"{one.seconds:.2f}",
        ]
        for one in summaries
    ]
    return tables.markdown_table(headers, rows)


def verdicts(summaries: Sequence[Summary]) -> list[str]:
    """Say what Direct Inversion + P2P reaches against its aims and its neighbours."""
    found = {one.method: one for one in summaries}
    if not {CEILING, PLAIN, FREE, DIRECT} <= set(found):
        return []
    ours = found[DIRECT]
    aims = [
        (f"{name} right", 100 * ours.right[name], least, "%")
        for name, least in (("colour", 90.0), ("shape", 75.0))
        if name in ours.right
    ]
    aims += [
        ("what must stay, against the autoencoder", ours.keep - found[CEILING].keep, -3.0, "dB"),
        ("what must stay, against plain DDIM", ours.keep - found[PLAIN].keep, 2.0, "dB"),
        ("what must stay, against P2P alone", ours.keep - found[FREE].keep, 2.0, "dB"),
    ]
    lines = [
        f"- {name}: {value:.1f} {unit}, aim {least:g} {unit}, "
        f"{'reached' if value >= least else 'missed'}"
        for name, value, least, unit in aims
    ]
    return ["\n".join([f"{DIRECT}:", *lines])]


def sweep(options: argparse.Namespace) -> int:
    """Print one line for each cfg and pair of windows, on scenes that no table uses."""
    cases = swap_cases(options.n, SWEEP_SEED, options.attributes.split(","))
    settings = make_settings(options)
    entries = [Entry(CEILING, CEILING, settings)]
    for cfg in SWEEP["cfg"]:
        base = dataclasses.replace(settings, cfg=cfg)
        entries.append(Entry(f"{PLAIN}, cfg {cfg:g}", PLAIN, base))
        for cross, own in itertools.product(SWEEP["cross"], SWEEP["self_"]):
            asked = dataclasses.replace(base, cross=cross, self_=own)
            for method in (FREE, DIRECT):
                label = f"{method}, cfg {cfg:g}, cross {cross:g}, self {own:g}"
                entries.append(Entry(label, method, asked))
    print(make_table(summarise(run_cases(cases, entries, options).scores)))
    return 0


def save_sheet(
    file: Path,
    cases: Sequence[EditCase],
    results: Results,
    numbers: Sequence[int],
    labels: Sequence[str],
) -> None:
    """Write the contact sheet: source, every method's edit, the exact target."""
    shown = [label for label in labels if not label.startswith("autoencoder")]
    rows = []
    for number in numbers:
        case = cases[number]
        edits = [results.pictures[label, number] for label in shown]
        caption = f"{case.source_caption}\n{case.source_word} → {case.target_word}"
        rows.append((caption, [case.source_image, *edits, case.target_image]))
    sheets.contact_sheet(["source", *shown, "exact target"], rows).save(file)


def save_scores(file: Path, results: Results) -> None:
    """Write every score as JSON."""
    scores = [dataclasses.asdict(score) for score in results.scores]
    file.write_text(json.dumps(scores, indent=1))
