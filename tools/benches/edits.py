"""One-word swaps on held-out scenes: what Direct Inversion and Prompt-to-Prompt each are worth.

Every scene is edited by every method with the same steps, cfg and windows. The captions say
neither size nor place, so that these can only come from the source picture.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from retrace.evaluation.scenes import swap_cases
from retrace.evaluation.scores import Summary, summarise
from retrace.evaluation.settings import KEEPING, Settings

from ._common import Entry, add_arguments, run_cases
from ._report import add_setting_arguments, compare, make_settings, make_table

METHODS = (
    "autoencoder, source",
    "autoencoder, exact target",
    "plain DDIM",
    "P2P",
    "DirectInversion + P2P",
)
CEILING, _, PLAIN, FREE, DIRECT = METHODS
FREE_BLEND, BLEND = f"{FREE} + LocalBlend", f"{DIRECT} + LocalBlend"
FREE_PASTED, PASTED = f"{FREE_BLEND}, pasted back", f"{BLEND}, pasted back"
KEEPERS = (CEILING, PLAIN, FREE, DIRECT, FREE_BLEND, BLEND, FREE_PASTED, PASTED)
SWEEP_SEED = 1000
SWEEP_CFG = (2.0, 3.0, 4.0)
SWEEP_WINDOWS = ((0.4, 0.6), (0.6, 0.4), (0.8, 0.4))  # cross, self


def main(arguments: Sequence[str]) -> int:
    """Print the table (or that of a sweep over cfg and windows); return the exit status."""
    options = read_arguments(arguments)
    if options.sweep:
        return sweep(options)
    cases = swap_cases(options.n, options.seed, options.attributes.split(","))
    settings = KEEPING if options.keeping else make_settings(options)
    entries = [Entry(name, name, settings) for name in options.methods.split(";")]
    name = "keeping" if options.keeping else "edits"
    summaries = compare(name, describe(options.n, settings), cases, entries, options)
    print(*verdicts(summaries), sep="\n")
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench edits", description=__doc__)
    add_arguments(parser, count=200, batch=20)
    add_setting_arguments(parser)
    parser.add_argument("--attributes", default="colour,shape",
                        help="what is swapped, in turn: colour, shape, background, pattern")
    parser.add_argument("--methods", help="separated by ';'")
    parser.add_argument("--keeping", action="store_true",
                        help="with LocalBlend, with and without the photo pasted back where "
                             "nothing was edited, at settings that keep more (settings.KEEPING)")
    parser.add_argument("--sweep", action="store_true",
                        help=f"try cfg and windows on other scenes (seed {SWEEP_SEED})")
    options = parser.parse_args(arguments)  # fmt: skip
    options.methods = options.methods or ";".join(KEEPERS if options.keeping else METHODS)
    return options


def describe(count: int, settings: Settings) -> str:
    """Say in one line what was run."""
    limit = settings.self_tokens
    layers = "" if limit is None else f" (layers of up to {limit} tokens)"
    return (
        f"{count} held-out scenes, one word swapped, {settings.steps} steps, cfg {settings.cfg:g}"
        f" for every method, windows cross {settings.cross:g} and self {settings.self_:g}"
        f"{layers}; one CPU thread a process."
    )


def verdicts(summaries: Sequence[Summary]) -> list[str]:
    """Say what Direct Inversion + P2P reaches against its aims and its neighbours.

    With LocalBlend where that was measured, and pasted back where that was.
    """
    found = {one.method: one for one in summaries}
    direct = next((method for method in (PASTED, BLEND, DIRECT) if method in found), "")
    if not {CEILING, PLAIN, FREE, direct} <= set(found):
        return []
    ours = found[direct]
    aims = [
        (f"{name} right", 100 * ours.right[name], least, "%")
        for name, least in (("colour", 90.0), ("shape", 75.0))
        if name in ours.right
    ]
    aims.append(("kept, against the autoencoder", ours.keep - found[CEILING].keep, -3.0, "dB"))
    for name in (PLAIN, FREE, FREE_PASTED):
        if name in found:
            aims.append((f"kept, against {name}", ours.keep - found[name].keep, 2.0, "dB"))
    for name in (PLAIN, FREE):
        more = 100 * (success(ours) - success(found[name]))
        aims.append((f"edits right, against {name}", more, 0.0, "points"))
    lines = [
        f"- {name}: {value:.1f} {unit}, aim {least:g} {unit}, "
        f"{'reached' if value >= least else 'missed'}"
        for name, value, least, unit in aims
    ]
    return ["\n".join([f"{direct}:", *lines])]


def success(summary: Summary) -> float:
    """Return the share of edits whose attribute is right, attributes alike."""
    return sum(summary.right.values()) / len(summary.right)


def sweep(options: argparse.Namespace) -> int:
    """Print one line for each cfg and pair of windows, on scenes that no table uses."""
    cases = swap_cases(options.n, SWEEP_SEED, options.attributes.split(","))
    settings = make_settings(options)
    entries = [Entry(CEILING, CEILING, settings)]
    for cfg in SWEEP_CFG:
        base = dataclasses.replace(settings, cfg=cfg)
        entries.append(Entry(f"{PLAIN}, cfg {cfg:g}", PLAIN, base))
        for cross, own in SWEEP_WINDOWS:
            asked = dataclasses.replace(base, cross=cross, self_=own)
            for method in (FREE, DIRECT, BLEND):
                label = f"{method}, cfg {cfg:g}, cross {cross:g}, self {own:g}"
                entries.append(Entry(label, method, asked))
    print(make_table(summarise(run_cases(cases, entries, options).scores)))
    return 0
