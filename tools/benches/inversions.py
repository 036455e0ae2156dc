"""Inversions under Prompt-to-Prompt: what each keeps, what each costs; and their round trips.

One-word swaps on held-out scenes, one cfg and one pair of windows for all. The round trips sample
back with the source prompt at cfg 1 and are compared with the autoencoder's own picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from retrace.evaluation import tables
from retrace.evaluation.scenes import swap_cases
from retrace.evaluation.scores import summarise

from ._common import Entry, add_arguments, run_cases
from ._report import add_setting_arguments, compare, make_settings, publish

EDITS = (
    "autoencoder, source",
    "DDIM + P2P",
    "NTI + P2P",
    "NPI + P2P",
    "ProxNPI + P2P",
    "DirectInversion + P2P",
    "DPM-Solver++ (30) + P2P",
    "DPM-Solver++ (30) + DirectInversion + P2P",
    "EDICT + P2P",
    "edit-friendly DDPM + P2P",
    "InfEdit (12) + P2P",
)
ROUND_TRIPS = (
    "DDIM (50)",
    "DDIM (50), refined 5 times a step",
    "DPM-Solver++ (30)",
    "EDICT (40 of 50)",
    "edit-friendly DDPM (50)",
)


def main(arguments: Sequence[str]) -> int:
    """Print both tables; return the exit status."""
    options = read_arguments(arguments)
    cases = swap_cases(options.n, options.seed)
    settings = make_settings(options)
    title = (
        f"{options.n} held-out scenes, one word swapped, {options.steps} steps unless said, cfg "
        f"{options.cfg:g}, windows cross {options.cross:g} and self {options.self_:g}; one CPU "
        "thread a process. Row-forwards and seconds are a picture's, inversion + edit."
    )
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    compare("inversions", title, cases, entries, options, reconstruction=True)
    if options.round_trips:
        trips = [Entry(name, name, settings) for name in options.round_trips.split(";")]
        scores = run_cases(cases, trips, options).scores
        publish("round-trips", make_round_trip_table(options.n, summarise(scores)), options)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench inversions", description=__doc__)
    add_arguments(parser, count=24, batch=12)
    add_setting_arguments(parser)
    parser.add_argument("--methods", default=";".join(EDITS), help="separated by ';'")
    parser.add_argument("--round-trips", default=";".join(ROUND_TRIPS),
                        help="separated by ';'; empty for none")
    return parser.parse_args(arguments)  # fmt: skip


def make_round_trip_table(count: int, summaries: Sequence) -> str:
    """Write the table of round trips."""
    rows = [
        [
            one.method,
            tables.decibel(one.latent),
            tables.decibel(one.reconstruction),
            f"{one.rows[0]} + {one.rows[1]}",
            f"{one.seconds:.2f}",
        ]
        for one in summaries
    ]
    headers = ["round trip at cfg 1", "to the autoencoder's picture dB", "to the source dB",
               "row-forwards", "s a picture"]
    title = f"{count} held-out scenes, inverted and sampled back with the source prompt."
    return f"{title}\n\n{tables.markdown_table(headers, rows)}"
