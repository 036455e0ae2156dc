"""pix2pix-zero: does cross-attention guidance keep the structure that the direction alone loses?

The target is no prompt but the source prompt's embedding moved along an edit direction, the mean
difference of captions with the old and the new word. Colour, shape and background are swapped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from retrace.evaluation.scenes import swap_cases

from ._common import Entry, add_arguments
from ._report import add_setting_arguments, compare, make_settings

METHODS = (
    "autoencoder, source",
    "direction",
    "direction + XAttn-Guidance",
    "DirectInversion + direction + XAttn-Guidance",
    "pix2pix-zero (regularised inversion)",
    "DirectInversion + pix2pix-zero",
)


def main(arguments: Sequence[str]) -> int:
    """Print the table; return the exit status."""
    options = read_arguments(arguments)
    cases = swap_cases(options.n, options.seed, ("colour", "shape", "background"))
    settings = make_settings(options)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    title = (
        f"{options.n} held-out scenes, colour, shape or background swapped by an edit direction, "
        f"{options.steps} steps, cfg {options.cfg:g}."
    )
    compare("pix2pix-zero", title, cases, entries, options)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench pix2pix_zero", description=__doc__)
    add_arguments(parser, count=30, batch=10)
    add_setting_arguments(parser)
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    return parser.parse_args(arguments)
