"""What MasaCtrl is for: objects that move or change their shape while their look stays.

Two kinds of held-out scenes. Moved: the caption's word for the place changes ("at the left" to "at
the right"). Reshaped: the word for the shape changes and no caption says the colour, so that it can
only come from the source picture. The look is the distance in grey levels between the object's
colour after the edit and the source object's own shade, over the edits that are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from retrace.evaluation import tables
from retrace.evaluation.scenes import EditCase, swap_cases
from retrace.evaluation.scenes_bench import draw, draw_reshapes
from retrace.evaluation.scores import Summary, summarise
from retrace.evaluation.settings import Settings

from ._common import Entry, add_arguments, run_cases
from ._report import (
    add_setting_arguments,
    compare,
    make_settings,
    publish,
    save_sheet,
    spread_out,
)

METHODS = (
    "plain DDIM",
    "DirectInversion + P2P",
    "DirectInversion + PnP",
    "MasaCtrl",
    "DirectInversion + MasaCtrl",
)
BLENDS = ("DirectInversion + P2P", "DirectInversion + P2P + LocalBlend")
NAMES = {"position": "moved", "shape": "reshaped"}


def main(arguments: Sequence[str]) -> int:
    """Print the table of both kinds; return the exit status."""
    options = read_arguments(arguments)
    settings = make_settings(options)
    if options.blend:
        return blend(options, settings)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    kinds = {
        "position": draw("position", options.n, options.seed),
        "shape": draw_reshapes(options.n, options.seed),
    }
    cases: list[EditCase] = [case for pair in zip(*kinds.values(), strict=True) for case in pair]
    pictured = spread_out(len(cases), options.pictures) if options.sheet else ()
    results = run_cases(cases, entries, options, pictured)
    found = {
        kind: summarise([score for score in results.scores if score.attribute == kind])
        for kind in kinds
    }
    title = (
        f"{options.n} held-out scenes to move and {options.n} to reshape, {options.steps} steps, "
        f"cfg {options.cfg:g}."
    )
    publish("controllers", f"{title}\n\n{make_table(found)}", options)
    if options.sheet:
        save_sheet(options.sheet, cases, results, pictured, [entry.label for entry in entries])
    return 0


def blend(options: argparse.Namespace, settings: Settings) -> int:
    """Print what LocalBlend adds to Prompt-to-Prompt on one-word swaps."""
    cases = swap_cases(options.n, options.seed)
    entries = [Entry(name, name, settings) for name in BLENDS]
    title = (
        f"{options.n} held-out scenes, one word swapped, {options.steps} steps, cfg "
        f"{options.cfg:g}, windows cross {options.cross:g} and self {options.self_:g}."
    )
    compare("blend", title, cases, entries, options)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench controllers", description=__doc__)
    add_arguments(parser, count=40, batch=20)
    add_setting_arguments(parser)
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ';'")
    parser.add_argument("--blend", action="store_true", help="what LocalBlend adds, instead")
    return parser.parse_args(arguments)


def make_table(found: dict[str, list[Summary]]) -> str:
    """Write what each method does with both kinds of edits, a row a method."""
    headers = ["method"]
    for name in (NAMES[kind] for kind in found):
        headers += [f"{name} %", f"look off by ({name})", f"what must stay dB ({name})"]
    rows = []
    for summaries in zip(*found.values(), strict=True):
        row = [summaries[0].method]
        for kind, one in zip(found, summaries, strict=True):
            row += [
                tables.percent(one.right[kind]), tables.decibel(one.look), tables.decibel(one.keep)
            ]
        rows.append([*row, f"{summaries[0].rows[0]} + {summaries[0].rows[1]}"])
    return tables.markdown_table([*headers, "row-forwards"], rows)
