"""A node type's inputs as /object_info tells them, in the order in which the page lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
UPLOADS = ("image_upload", "video_upload", "audio_upload")
EMPTY = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}


@dataclass(frozen=True)
class Slot:
    """One input. type: COMBO for a choice; choices: its options."""

    name: str
    type: str
    options: dict[str, Any]
    required: bool
    choices: tuple = ()

    @property
    def widget(self) -> bool:
        """Whether the page shows a field for it."""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def control(self) -> bool:
        """Whether the page adds a "control after generate" choice behind it."""
        told = self.options.get("control_after_generate")
        by_name = self.type == "INT" and self.name in ("seed", "noise_seed")
        return self.widget and (by_name if told is None else bool(told))

    @property
    def default(self) -> Any:
        """The value of an untouched field."""
        if "default" in self.options:
            return self.options["default"]
        if self.type == "COMBO":
            return self.choices[0] if self.choices else ""
        return EMPTY.get(self.type)

    def accepts(self, kind: str) -> bool:
        """Tell whether an output of a type may be wired to it."""
        mine, theirs = set(self.type.split(",")), set(str(kind).split(","))
        return "*" in mine | theirs or bool(mine & theirs)

    def refuse(self, value: Any) -> str:
        """Say why a value is not allowed, "" if it is."""
        if self.type == "COMBO":
            return "" if value in self.choices else f"{value!r} is none of {list(self.choices)}"
        if self.type in ("INT", "FLOAT"):
            low, high = self.options.get("min", value), self.options.get("max", value)
            return "" if low <= value <= high else f"{value} lies outside {low} to {high}"
        wanted = {"STRING": str, "BOOLEAN": bool}[self.type]
        return "" if isinstance(value, wanted) else f"{value!r} is no {wanted.__name__}"


def read_slots(described: dict[str, Any]) -> list[Slot]:
    """Return a node type's inputs, required ones first."""
    slots = []
    for group in ("required", "optional"):
        specs = described["input"].get(group) or {}
        for name in described.get("input_order", {}).get(group) or specs:
            spec = specs[name]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            choices = spec[0] if isinstance(spec[0], list) else options.get("options", ())
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            slots.append(Slot(name, kind, options, group == "required", tuple(choices)))
    return slots
