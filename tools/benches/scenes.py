"""Scenes-Bench: seven kinds of edits with exact targets, by every method, in the papers' columns.

Objects changed, added, deleted, moved and recoloured, patterns and backgrounds changed; --write
gives the cases in PIE-Bench's folder and JSON format, with the exact targets beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from retrace.evaluation.scenes_bench import KINDS, bench_cases, write

from ._common import Entry, add_arguments
from ._report import add_setting_arguments, compare, make_settings

METHODS = (
    "autoencoder, source",
    "plain DDIM",
    "P2P",
    "DirectInversion + P2P",
    "DirectInversion + P2P + LocalBlend",
    "NPI + P2P",
    "ProxNPI + P2P",
    "MasaCtrl",
    "DirectInversion + MasaCtrl",
    "PnP",
    "DirectInversion + PnP",
)
SEED = 20


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write the cases; return the exit status."""
    options = read_arguments(arguments)
    found = bench_cases(options.n, options.seed)
    if options.write:
        print(f"{len(found)} cases: {write(options.write, found)}")
        return 0
    settings = make_settings(options)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    title = (
        f"Scenes-Bench: {len(found)} edits, {options.n} of each kind, {options.steps} steps, cfg "
        f"{options.cfg:g}, windows cross {options.cross:g} and self {options.self_:g}."
    )
    compare("scenes", title, [bench.case for bench in found], entries, options)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench scenes", description=__doc__)
    add_arguments(parser, count=30, batch=15)
    parser.set_defaults(seed=SEED, pictures=len(KINDS))
    add_setting_arguments(parser)
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    parser.add_argument("--write", type=Path, metavar="FOLDER",
                        help="write the cases there and edit nothing")
    return parser.parse_args(arguments)  # fmt: skip
