"""What of the nodes' schemas is a promise to saved workflows, and whether it was kept."""

from __future__ import annotations

import json
from typing import Any

from .slots import read_slots

KEPT_OPTIONS = ("default", "min", "max", "multiline", "forceInput")
HOST_CHOICES = ("schedule", "file")  # combos whose choices come from the host or the disk


def snapshot(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return what workflows rely on, for each node of the pack, from a server's /object_info."""
    return {
        name: _describe(object_info[name])
        for name in sorted(object_info)
        if name.startswith("Retrace")
    }


def _describe(described: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for slot in read_slots(described):
        inputs[slot.name] = {"type": slot.type, "required": slot.required}
        inputs[slot.name] |= {key: slot.options[key] for key in KEPT_OPTIONS if key in slot.options}
        if slot.type == "COMBO" and slot.name not in HOST_CHOICES:
            inputs[slot.name]["choices"] = list(slot.choices)
    names = described.get("output_name") or described["output"]
    return {
        "name": described["display_name"],
        "inputs": inputs,
        "outputs": [list(pair) for pair in zip(names, described["output"], strict=True)],
    }


def broken_promises(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in what a workflow saved with `old` would go wrong with `new`.

    Widget values are saved by position: inputs may only be added behind those that were there.
    """
    broken = [f"{node} is gone" for node in old.keys() - new.keys()]
    for node in old.keys() & new.keys():
        before, after = old[node], new[node]
        order = [name for name in after["inputs"] if name in before["inputs"]]
        if list(after["inputs"])[: len(before["inputs"])] != list(before["inputs"]):
            missing = [name for name in before["inputs"] if name not in order]
            what = f"lost inputs {missing}" if missing else "has its inputs in another order"
            broken.append(f"{node} {what}")
        for name in order:
            broken += [f"{node}.{name}: {what}" for what in _changes(before, after, name)]
        broken += [
            f"{node}.{name}: a new input has to be optional"
            for name in after["inputs"].keys() - before["inputs"].keys()
            if after["inputs"][name]["required"]
        ]
        if after["outputs"][: len(before["outputs"])] != before["outputs"]:
            broken.append(f"{node}: outputs were {before['outputs']}")
    return sorted(broken)


def _changes(before: dict[str, Any], after: dict[str, Any], name: str) -> list[str]:
    old, new = dict(before["inputs"][name]), dict(after["inputs"][name])
    lost = set(old.pop("choices", [])) - set(new.pop("choices", []))
    changes = [f"lost the choices {sorted(lost)}"] if lost else []
    if old != new:
        changes.append(f"was {json.dumps(old)}, is {json.dumps(new)}")
    return changes
