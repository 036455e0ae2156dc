"""DiT4Edit's parts on held-out scenes, with the demo's PixArt: inversion, control, merging.

One word is swapped in each scene, a colour or a shape. The first table compares inversions of
equal steps with the source sampled beside the target; the second unified control with its parts,
the third merging, both from DPM-Solver++ with the source pinned.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from retrace.attention import dit4edit
from retrace.evaluation.scenes import swap_cases
from retrace.evaluation.scores import summarise
from retrace.evaluation.settings import Settings

from ._common import Entry, add_arguments, run_cases
from ._report import make_table, publish, save_scores, save_sheet, spread_out

CEILING = "autoencoder, source"
UNIFIED = "unified control"  # as evaluation/dit_methods.py names it, which needs a host
TABLES = {
    "inversion": (CEILING, "DDIM + unified control", "DPM-Solver++ + unified control"),
    "control": (
        CEILING, "no control", "word maps alone", "content alone (MasaCtrl) from 0.2",
        "word maps, structure, content from 0.2", UNIFIED,
    ),
    "merging": (UNIFIED, "unified, merge 0.5", "unified, merge 0.8"),
}  # fmt: skip
ABLATION_SEED = 1000
ABLATED_CFG = (2.0, 3.0, 4.5)
ABLATED_CROSS = (0.2, 0.4, 0.6, 0.8)
ABLATED_SWITCH = (0.0, 0.2, 0.4, 0.7, 1.0)
ABLATED_FROM = (0.0, 0.25, 0.5, 0.75)


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or that of the ablation; return the exit status."""
    options = read_arguments(arguments)
    settings = Settings(
        steps=options.steps, cfg=options.cfg, cross=options.cross, self_=options.switch,
        cross_from=options.cross_from, self_from=options.self_from,
    )  # fmt: skip
    attributes = options.attributes.split(",")
    if options.ablate:
        cases = swap_cases(options.n, ABLATION_SEED, attributes)
        axes = options.ablate.split(",")
        entries = [Entry(CEILING, CEILING, settings)]
        entries += [entry for axis in axes for entry in ablation(settings, axis)]
        print(make_table(summarise(run_cases(cases, entries, options).scores)), flush=True)
        return 0
    cases = swap_cases(options.n, options.seed, attributes)
    title = (
        f"{options.n} held-out scenes, one word swapped, the demo's PixArt, {options.steps} steps, "
        f"cfg {options.cfg:g}, word maps {options.cross:g}, switch {options.switch:g}; one CPU "
        "thread a process."
    )
    names = options.tables.split(",")
    # one run for all tables, so that they share what they can of the inversions
    labels = dict.fromkeys(label for name in names for label in TABLES[name])
    pictured = spread_out(len(cases), options.pictures) if options.sheet else ()
    entries = [Entry(label, label, settings) for label in labels]
    results = run_cases(cases, entries, options, pictured)
    summaries = {one.method: one for one in summarise(results.scores)}
    for name in names:
        table = make_table([summaries[label] for label in TABLES[name]], name == "inversion")
        publish(f"dit-{name}", f"{title}\n\n{table}", options)
    if options.sheet:
        save_sheet(options.sheet, cases, results, pictured, list(labels))
    if options.json:
        save_scores(options.json, results)
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench dit", description=__doc__)
    add_arguments(parser, count=24, batch=12, kind="dit")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg", type=float, default=4.5, help="guidance of every edit (4.5)")
    parser.add_argument("--cross", type=float, default=dit4edit.CROSS_REPLACE,
                        help="window of word maps")
    parser.add_argument("--switch", type=float, default=dit4edit.SWITCH,
                        help="from structure to content")
    parser.add_argument("--attributes", default="colour,shape",
                        help="what is swapped, in turn: colour, shape, background, pattern")
    parser.add_argument("--tables", default=",".join(TABLES), help="separated by ','")
    parser.add_argument("--cross-from", type=float, default=dit4edit.CROSS_FROM,
                        help="depth from which word maps are held")
    parser.add_argument("--self-from", type=float, default=dit4edit.SELF_FROM,
                        help="depth from which self-attention is controlled")
    parser.add_argument("--ablate", default="", metavar="AXES",
                        help="try settings of unified control on other scenes (seed "
                             f"{ABLATION_SEED}): cfg, cross, switch, depth, or single values such "
                             "as cross=0.2 or cross=0.2+switch=1, separated by ','")
    return parser.parse_args(arguments)  # fmt: skip


def ablation(base: Settings, axis: str) -> Iterator[Entry]:
    """Yield unified control along one axis of its settings, everything else as given.

    axis: a name, or values of one point: "cross=0.2+switch=1".
    """
    names = {"switch": "self_"}
    if "=" in axis:
        pairs = [pair.split("=") for pair in axis.split("+")]
        varied = [{names.get(name, name): float(value) for name, value in pairs}]
    else:
        varied = {
            "cfg": [{"cfg": value} for value in ABLATED_CFG],
            "cross": [{"cross": value} for value in ABLATED_CROSS],
            "switch": [{"self_": value} for value in ABLATED_SWITCH],
            "depth": [
                *({"self_from": value} for value in ABLATED_FROM),
                *({"cross_from": value} for value in ABLATED_FROM[1:]),
            ],
        }[axis]
    words = {value: name for name, value in names.items()}
    for changes in varied:
        label = ", ".join(f"{words.get(name, name)} {value:g}" for name, value in changes.items())
        yield Entry(f"{UNIFIED}, {label}", UNIFIED, dataclasses.replace(base, **changes))
