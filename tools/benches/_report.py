"""What the benches of edits print and write: a table, its place in the README, a contact sheet."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from pack import ROOT
from retrace.evaluation import sheets, tables
from retrace.evaluation.scenes import EditCase
from retrace.evaluation.scores import Summary, summarise
from retrace.evaluation.settings import Settings

from ._common import Entry, Results, run_cases


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the parameters that all methods of a table share."""
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance of every edit (4)")
    parser.add_argument("--cross", type=float, default=0.6, help="cross window of P2P (0.6)")
    parser.add_argument("--self", type=float, default=0.4, dest="self_", help="self window (0.4)")


def make_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the command line asks for."""
    return Settings(options.steps, options.cfg, options.cross, options.self_)


def compare(
    name: str,
    title: str,
    cases: Sequence[EditCase],
    entries: Sequence[Entry],
    options: argparse.Namespace,
    reconstruction: bool = False,
) -> list[Summary]:
    """Run a comparison; print and write what the command line asks for."""
    pictured = spread_out(len(cases), options.pictures) if options.sheet else ()
    results = run_cases(cases, entries, options, pictured)
    summaries = summarise(results.scores)
    publish(name, f"{title}\n\n{make_table(summaries, reconstruction)}", options)
    if options.sheet:
        save_sheet(options.sheet, cases, results, pictured, [entry.label for entry in entries])
    if options.json:
        save_scores(options.json, results)
    return summaries


def spread_out(count: int, wanted: int) -> range:
    """Return the numbers of about `wanted` cases, evenly apart; an odd step shows all kinds."""
    return range(0, count, max(1, count // max(wanted, 1) | 1)) if wanted else range(0)


def publish(name: str, text: str, options: argparse.Namespace) -> None:
    """Print a table with its title, and put it into the README if asked to."""
    print(text, end="\n\n")
    if options.readme:
        tables.fill(ROOT / "README.md", name, text)


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
        caption = f"{case.source_caption}\n({case.source_word} to {case.target_word})"
        rows.append((caption, [case.source_image, *edits, case.target_image]))
    sheets.contact_sheet(["source", *shown, "exact target"], rows).save(file)


def save_scores(file: Path, results: Results) -> None:
    """Write every score as JSON."""
    scores = [dataclasses.asdict(score) for score in results.scores]
    file.write_text(json.dumps(scores, indent=1))
