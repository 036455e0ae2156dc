"""pix2pix-zero: does cross-attention guidance keep the structure that the direction alone loses?

The target is no prompt but the source prompt's embedding moved along an edit direction, the mean
difference of captions with the old and the new word. Colour, shape and background are swapped.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from retrace.evaluation.scenes import swap_cases
from retrace.evaluation.scores import summarise

from ._common import Entry, add_arguments, run_cases
from ._report import add_setting_arguments, compare, make_settings, make_table

METHODS = (
    "autoencoder, source",
    "direction",
    "direction + XAttn-Guidance",
    "DirectInversion + direction + XAttn-Guidance",
    "pix2pix-zero (regularised inversion)",
    "DirectInversion + pix2pix-zero",
)
ATTRIBUTES = ("colour", "shape", "background")
SWEEP_SEED = 1000
SWEEP_AMOUNTS = (0.05, 0.1, 0.2, 0.5)


def main(arguments: Sequence[str]) -> int:
    """Print the table (or that of a sweep over amounts); return the exit status."""
    options = read_arguments(arguments)
    if options.sweep:
        return sweep(options)
    cases = swap_cases(options.n, options.seed, ATTRIBUTES)
    settings = dataclasses.replace(make_settings(options), amount=options.amount)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    title = (
        f"{options.n} held-out scenes, colour, shape or background swapped by an edit direction, "
        f"{options.steps} steps, cfg {options.cfg:g}, amount {options.amount:g}."
    )
    compare("pix2pix-zero", title, cases, entries, options)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench pix2pix_zero", description=__doc__)
    add_arguments(parser, count=30, batch=10)
    add_setting_arguments(parser)
    parser.add_argument("--amount", type=float, default=0.1, help="of XAttn-Guidance (0.1)")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    parser.add_argument("--sweep", action="store_true",
                        help=f"try amounts on other scenes (seed {SWEEP_SEED})")
    return parser.parse_args(arguments)


def sweep(options: argparse.Namespace) -> int:
    """Print one line for each amount, on scenes that no table uses."""
    cases = swap_cases(options.n, SWEEP_SEED, ATTRIBUTES)
    settings, method = make_settings(options), METHODS[3]
    entries = [
        Entry(f"{method}, amount {amount:g}", method, dataclasses.replace(settings, amount=amount))
        for amount in SWEEP_AMOUNTS
    ]
    print(make_table(summarise(run_cases(cases, entries, options).scores)))
    return 0
