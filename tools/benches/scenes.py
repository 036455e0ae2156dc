"""Scenes-Bench: seven kinds of edits with exact targets, by every method, in the papers' columns.

Objects changed, added, deleted, moved and recoloured, patterns and backgrounds changed; --write
gives the cases in PIE-Bench's folder and JSON format, with the exact targets beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from retrace.evaluation import tables
from retrace.evaluation.scenes_bench import KINDS, bench_cases, write
from retrace.evaluation.scores import Score, Summary, summarise

from ._common import Entry, Results, add_arguments, run_cases
from ._report import (
    add_setting_arguments,
    make_settings,
    publish,
    save_scores,
    save_sheet,
    spread_out,
)

METHODS = (
    "autoencoder, source",
    "plain DDIM",
    "DDIM + P2P",
    "NTI + P2P",
    "NPI + P2P",
    "ProxNPI + P2P",
    "DirectInversion + P2P",
    "DirectInversion + P2P + LocalBlend",
    "edit-friendly DDPM + P2P",
    "InfEdit (12) + P2P",
    "MasaCtrl",
    "DirectInversion + MasaCtrl",
    "PnP",
    "DirectInversion + PnP",
    "pix2pix-zero (regularised inversion)",
    "DirectInversion + pix2pix-zero",
)
HEADERS = (
    "method", "PSNR ↑", "MSE ×10⁴ ↓", "SSIM ×10² ↑", "corrected PSNR ↑", "to exact target dB ↑",
    "right % ↑", "all right % ↑", "row-forwards", "s a picture",
)  # fmt: skip
SEED = 20


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write the cases; return the exit status."""
    options = read_arguments(arguments)
    found = bench_cases(options.n, options.seed)
    if options.write:
        print(f"{len(found)} cases: {write(options.write, found)}")
        return 0
    settings = make_settings(options)
    entries = [Entry(name, name, settings) for name in options.methods.split(";") if name]
    cases = [bench.case for bench in found]
    pictured = spread_out(len(cases), options.pictures) if options.sheet else ()
    results = run_cases(cases, entries, options, pictured) if entries else Results()
    for file in options.join:
        results.scores += read_scores(file)
    publish("scenes", f"{title(options)}\n\n{make_table(summarise(results.scores))}", options)
    if options.sheet:
        save_sheet(options.sheet, cases, results, pictured, [entry.label for entry in entries])
    if options.json:
        save_scores(options.json, results)
    return 0


def title(options: argparse.Namespace) -> str:
    """Say what was run."""
    return (
        f"Scenes-Bench: {options.n * len(KINDS)} edits, {options.n} of each kind, {options.steps} "
        f"steps, cfg {options.cfg:g}, windows cross {options.cross:g} and self {options.self_:g}; "
        "what must stay in the published convention, and corrected; one CPU thread a process."
    )


def read_scores(file: Path) -> list[Score]:
    """Read the scores that an earlier run wrote with --json."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    return [Score(**{**entry, "rows": tuple(entry["rows"])}) for entry in entries]


def make_table(summaries: Sequence[Summary]) -> str:
    """Write the papers' columns that need no network, what is right, and the cost."""
    rows = []
    for one in summaries:
        free = one.rows == (0, 0)
        rows.append([
            one.method, f"{one.keep_published:.2f}", f"{1e4 * one.published_mse:.2f}",
            f"{100 * one.published_ssim:.2f}", f"{one.keep:.2f}", f"{one.exact:.2f}",
            tables.percent(sum(one.right.values()) / len(one.right)), tables.percent(one.all_right),
            "–" if free else f"{one.rows[0]} + {one.rows[1]}",
            "–" if free else f"{one.seconds:.1f}",
        ])  # fmt: skip
    return tables.markdown_table(HEADERS, rows)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench scenes", description=__doc__)
    add_arguments(parser, count=30, batch=15)
    parser.set_defaults(seed=SEED, pictures=len(KINDS))
    add_setting_arguments(parser)
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    parser.add_argument("--join", type=Path, nargs="*", default=[], metavar="JSON",
                        help="add the scores of earlier runs of other methods to the table")
    parser.add_argument("--write", type=Path, metavar="FOLDER",
                        help="write the cases there and edit nothing")
    return parser.parse_args(arguments)  # fmt: skip
