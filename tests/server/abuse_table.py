"""The table of abuse: every node and every input, given what no user means to give.

Whatever comes in: the run works, or the node at fault is named with a sentence of ours (the host
refuses some values itself); see test_abuse.py.
"""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hosting.errors import RunError
from probe_pack import KINDS, SPOILT, TURNED
from retrace.diffusion import errors

NODES = json.loads((Path(__file__).parents[1] / "nodes" / "schemas.json").read_text("utf-8"))
OURS = {name for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.RetraceError)}  # fmt: skip
ABSENT = object()
NAN, INF = float("nan"), float("inf")


def text(written: Any) -> dict:
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": written}}


WORLD = {
    "model": {"class_type": "RetraceDemoModel", "inputs": {"network": "unet"}},
    "scene": {"class_type": "RetraceDemoScene", "inputs": {"scene": "colour"}},
    "latent": {"class_type": "VAEEncode",
               "inputs": {"pixels": ["scene", 0], "vae": ["model", 2]}},
    "source": text(["scene", 1]),
    "target": text(["scene", 2]),
    "empty": text(""),
    "pair": {"class_type": "RetracePromptPair", "inputs": {
        "clip": ["model", 1], "source": ["scene", 1], "target": ["scene", 2]}},
    "inversion": {"class_type": "RetraceInvertDDIM", "inputs": {
        "model": ["model", 0], "positive": ["source", 0], "latent": ["latent", 0], "steps": 2,
        "schedule": "diffusers", "cfg": 1.0, "evaluate_at": "next", "refine": 0}},
    "record": {"class_type": "RetraceAttentionCapture", "inputs": {
        "model": ["model", 0], "trajectory": ["inversion", 0], "sites": "all", "dtype": "fp16",
        "budget_mb": 4096, "device": "cpu"}},
    "turn": {"class_type": "RetraceEditDirection", "inputs": {
        "clip": ["model", 1], "source_sentences": "a circle", "target_sentences": "a star",
        "conditioning": ["source", 0], "strength": 1.0}},
    "vision": {"class_type": "RetraceDemoVision", "inputs": {}},
    "learned": {"class_type": "RetraceInvertStyleDiffusion", "inputs": {
        "model": ["model", 0], "trajectory": ["inversion", 0], "negative": ["empty", 0],
        "clip_vision": ["vision", 0], "image": ["scene", 0], "cfg": 4.0, "inner_steps": 1,
        "learning_rate": 0.01, "early_stop": 0.0, "map_weight": 1.0, "start": "identity",
        "seed": 0}},
}  # fmt: skip
LINKS = {
    "MODEL": ["model", 0], "CLIP": ["model", 1], "VAE": ["model", 2],
    "LATENT": ["latent", 0], "CONDITIONING": ["target", 0], "IMAGE": ["scene", 0],
    "MASK": ["scene", 4], "SIGMAS": ["inversion", 2], "RETRACE_TRAJECTORY": ["inversion", 0],
    "RETRACE_PROMPTS": ["pair", 2], "RETRACE_ATTENTION": ["record", 0],
    "RETRACE_DIRECTION": ["turn", 1], "CLIP_VISION": ["vision", 0],
}  # fmt: skip
GIVEN = {"positive": ["source", 0], "negative": ["empty", 0], "edited": ["scene", 3]}
SMALL = {"steps": 2, "inner_steps": 1, "frames": 2, "iterations": 1, "words": "circle"}
OWN = {  # what a node needs beyond the defaults on this small scene
    "RetraceEditDirection": {"source_sentences": "a circle", "target_sentences": "a star"},
    "RetraceInvertEDICT": {"strength": 1.0, "negative": ["empty", 0]},
    "RetraceMasaCtrlController": {"start_step": 1.0},
    "RetraceSparseGuidance": {"prompts": ["pair", 2]},
    "RetraceStyleDiffusionWindow": {"trajectory": ["learned", 0]},
}
SENTENCES = "abuse.txt"
FILES = {"RetraceLoadTrajectory": "RetraceSaveTrajectory",
         "RetraceLoadDirection": "RetraceSaveDirection"}  # fmt: skip
TEXTS = {
    "empty": "", "blank": " \n\t ", "unicode": "猫の写真 🐱 é אב \u200b\u202e",
    "long": "star " * 400,
    "control": "a\0b\x07\x1b[31m", "brackets": "((a:1.2), [b|c], {d}",
    "path": "../../../etc/passwd", "numbers": "1e999, nan: -inf", "list": [], "object": {"a": 1},
}  # fmt: skip
WRONG = ("nan", "inf", "no ", "none", "nothing", "video", "audio", "16 channels", "other family",
         "other channels", "flux", "a picture", "a mask", "one channel", "negative", "zeros",
         "up and down", "a table", "one", "empty")  # fmt: skip
HARMLESS = {  # where a value from WRONG is as good as any
    ("MASK", "negative"),  # clamped
    ("SIGMAS", "zeros"), ("IMAGE", "one pixel"),
}  # fmt: skip


class Case(NamedTuple):
    """One input of one node given one value. fails: whether it must; absent: leave it out."""

    node: str
    input: str
    label: str
    value: Any = None
    fails: bool = True
    absent: bool = False
    more: Mapping = MappingProxyType({})

    def __str__(self) -> str:
        return f"{self.node.removeprefix('Retrace')}-{self.input}-{self.label}"


def cases_of(node: str, name: str, given: dict) -> list[Case]:
    """Return the cases of one input, by its type."""
    kind, required = given["type"], given["required"]
    made = [Case(node, name, "missing", None, required, absent=True)]
    if kind in LINKS:
        made += link_cases(node, name, kind, required)
    elif kind in ("INT", "FLOAT"):
        values = {"text": "many", "nothing": None, "NaN": NAN, "inf": INF, "-inf": -INF,
                  "a list": [], "huge": 1e300}  # fmt: skip
        values |= {"below": given["min"] - 1, "above": given["max"] + 1}
        made += [Case(node, name, label, value) for label, value in values.items()]
        made += [Case(node, name, end, given[end], fails=False)
                 for end in ("min", "max") if harmless_extreme(name, given[end])]  # fmt: skip
    elif kind == "COMBO":
        values = {"unknown": "no such", "blank": "", "number": 7, "path": "../../../etc/passwd"}
        made += [Case(node, name, label, value) for label, value in values.items()]
    elif kind == "BOOLEAN":
        made += [Case(node, name, str(value), value, False) for value in ("maybe", "", 7)]
    elif kind == "STRING":
        made += [Case(node, name, label, value, False) for label, value in TEXTS.items()]
        made.append(Case(node, name, "a model", ["model", 0]))
    return made


def harmless_extreme(name: str, value: float) -> bool:
    """Tell whether a limit is cheap to try: no thousand steps."""
    return name not in {*SMALL, "refine", "sweeps"} or value <= 4


def link_cases(node: str, name: str, kind: str, required: bool) -> list[Case]:
    """Return the cases of an input that takes a link."""
    wrong_type = ["scene", 1] if kind != "CLIP" else ["model", 0]
    made = [Case(node, name, "other type", wrong_type), Case(node, name, "text", "a text"),
            Case(node, name, "number", 5), Case(node, name, "null", None, required)]  # fmt: skip
    spoilt = {"RETRACE_TRAJECTORY": SPOILT, "RETRACE_DIRECTION": TURNED, **KINDS}
    for label in spoilt.get(kind, ()):
        inputs = {"kind": label}
        if kind.startswith("RETRACE"):
            inputs[kind.split("_")[1].lower()] = LINKS[kind]
        probe = {"probe": {"class_type": f"Probe_{kind}", "inputs": inputs}}
        fails = must_fail(node, kind, label, required)
        made.append(Case(node, name, label, ["probe", 0], fails, more=probe))
    return made


def must_fail(node: str, kind: str, label: str, required: bool) -> bool:
    """Tell whether a value on a link can do no good in any node."""
    if kind == "RETRACE_TRAJECTORY":  # a node that runs no model cannot know
        model = NODES[node]["inputs"].get("model", {})
        return label == "other family" and model.get("required", False) and required
    if (kind, label) in HARMLESS or (kind == "MODEL" and label not in ("nothing", "flux")):
        return False
    if label == "nothing" and not required:
        return False
    return label.startswith(WRONG) and label not in ("one pixel",)


def representative(cases: Iterable[Case], each: int = 2) -> set[int]:
    """Choose cases by their places: all of a type's wrong values, dealt out among its inputs.

    Every input of every node is left out once and gets at least `each` of its type's wrong values.
    """
    chosen, labels = set(), defaultdict(lambda: defaultdict(list))
    inputs = defaultdict(list)
    for place, case in enumerate(cases):
        if case.absent:
            chosen.add(place)
            continue
        kind = NODES[case.node]["inputs"][case.input]["type"]
        labels[kind][case.label].append(place)
        inputs[case.node, case.input].append(place)
    for alike in labels.values():
        chosen |= {places[turn % len(places)] for turn, places in enumerate(alike.values())}
    for turn, places in enumerate(inputs.values()):
        chosen |= {places[(turn * each + i) % len(places)] for i in range(each)}
    return chosen


CASES = [
    case
    for node, schema in NODES.items()
    for name, given in schema["inputs"].items()
    for case in cases_of(node, name, given)
]
REPRESENTATIVE = representative(CASES)


def graph(node: str, changed: dict, files: dict[str, str]) -> dict:
    """Return the node under test as "it", what uses its result, and what shows that."""
    inputs = {}
    for name, given in NODES[node]["inputs"].items():
        kind = given["type"]
        if name in changed or not given["required"]:
            continue
        if kind in LINKS:
            inputs[name] = GIVEN.get(name, LINKS[kind])
        elif name == "file":
            inputs[name] = files.get(node, "none")
        elif name in SMALL and kind != "COMBO":
            inputs[name] = SMALL[name]
        else:
            inputs[name] = given.get("default", "diffusers")
    inputs |= {name: value for name, value in OWN.get(node, {}).items() if name not in changed}
    inputs |= {name: value for name, value in changed.items() if value is not ABSENT}
    made = {"it": {"class_type": node, "inputs": inputs}}
    end = "it"
    if [kind for _, kind in NODES[node]["outputs"]][:1] == ["MODEL"] and node != "RetraceDemoModel":
        end = "sampler"
        made[end] = {"class_type": "RetraceEditSampler", "inputs": {
            "model": ["it", 0], "trajectory": ["inversion", 0], "positive": ["target", 0],
            "negative": ["empty", 0], "cfg": 4.0, "start_step": 0}}  # fmt: skip
    if NODES[node]["outputs"]:
        made["show"] = {"class_type": "PreviewAny", "inputs": {"source": [end, 0]}}
    return made


def check_message(error: RunError) -> None:
    """Assert that an error names the node at fault and says in a sentence what is wrong."""
    message = str(error)
    assert "Traceback" not in message
    if message.startswith("the server refused the workflow: "):
        assert error.node_id == "it", message
        return
    assert error.node_id in ("it", "sampler"), message
    kind, said = re.fullmatch(r"\w+ \(node \w+\): (\w+): (.*)", message, re.DOTALL).groups()
    assert kind in OURS, f"{message}\n{error.traceback}"
    assert len(said.split()) > 4, message
