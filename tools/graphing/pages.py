"""The tables of the help pages: inputs and outputs, from the schemas and their translations."""

from __future__ import annotations

import re
from typing import Any

from .slots import Slot, read_slots

HEADINGS = {
    "en": (("Input", "Type", "Default", "Range", "What it does"), ("Output", "Type", "What it is")),
    "zh": (("输入", "类型", "默认值", "范围", "作用"), ("输出", "类型", "说明")),
}
OPTIONAL = {"en": "optional", "zh": "可选"}
MARKED = re.compile(r"<!-- (inputs|outputs) -->.*?<!-- /\1 -->", re.DOTALL)


def fill(text: str, described: dict[str, Any], language: str, words: dict[str, Any]) -> str:
    """Return a help page with its two tables written anew.

    described: the node in /object_info. words: its entry of the language's nodeDefs.json ({} for
    English, which the schema itself speaks).
    """
    tables = {
        "inputs": inputs_table(described, language, words),
        "outputs": outputs_table(described, language, words),
    }

    def write(found: re.Match) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{tables[name]}<!-- /{name} -->"

    return MARKED.sub(write, text)


def inputs_table(described: dict[str, Any], language: str, words: dict[str, Any]) -> str:
    """Write the table of inputs, "" if there are none."""
    rows = []
    for slot in read_slots(described):
        told = words.get("inputs", {}).get(slot.name, {})
        tooltip = told.get("tooltip") or slot.options.get("tooltip") or ""
        name = f"`{slot.name}`" + (f" {told['name']}" if told.get("name") else "")
        kind = slot.type + ("" if slot.required else f" ({OPTIONAL[language]})")
        rows.append((name, kind, _default(slot), _range(slot), tooltip))
    return _table(HEADINGS[language][0], rows)


def outputs_table(described: dict[str, Any], language: str, words: dict[str, Any]) -> str:
    """Write the table of outputs."""
    rows = []
    tooltips = described.get("output_tooltips") or [""] * len(described["output"])
    listed = zip(described["output_name"], described["output"], tooltips, strict=True)
    for i, (name, kind, tooltip) in enumerate(listed):
        told = words.get("outputs", {}).get(str(i), {})
        shown = f"`{name}`" + (f" {told['name']}" if told.get("name") else "")
        rows.append((shown, kind, told.get("tooltip") or tooltip or ""))
    return _table(HEADINGS[language][1], rows)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )


def _default(slot: Slot) -> str:
    if not slot.widget or slot.default == "":
        return ""
    return str(slot.default).splitlines()[0]


def _range(slot: Slot) -> str:
    if slot.type == "COMBO":
        shown = [str(choice) for choice in slot.choices[:6]]
        return ", ".join(shown) + (" …" if len(slot.choices) > 6 else "")
    if "min" in slot.options and "max" in slot.options:
        return f"{_show(slot.options['min'])} – {_show(slot.options['max'])}"
    return ""


def _show(value: float) -> str:
    if abs(value) > 1e9:  # seeds and the like
        return f"{value:.0e}"
    return f"{value:g}"
