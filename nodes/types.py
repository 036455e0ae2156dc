"""Link types of Retrace and small helpers shared by its nodes."""

import dataclasses
from typing import Any

from comfy_api.latest import io

Trajectory = io.Custom("RETRACE_TRAJECTORY")
Prompts = io.Custom("RETRACE_PROMPTS")
Attention = io.Custom("RETRACE_ATTENTION")
Direction = io.Custom("RETRACE_DIRECTION")

CATEGORY = "image editing/retrace"

SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """Make a node schema, leaving out fields that an older host does not know.

    The host wants ids that differ between inputs and outputs; an output called like an input (a
    MODEL that goes through) keeps its name for people and gets an id of its own.
    """
    fields.setdefault("category", CATEGORY)
    taken = {given.id for given in fields.get("inputs", ())}
    for output in fields.get("outputs", ()):
        if output.id in taken:
            output.display_name = output.display_name or output.id
            output.id = f"{output.id}_out"
    return io.Schema(**{name: value for name, value in fields.items() if name in SCHEMA_FIELDS})


def recorded_input() -> io.Input:
    """Return the input through which a controller is given recorded attention."""
    return Attention.Input(
        "attention",
        optional=True,
        tooltip=(
            "From Attention-Capture: the source is read from it instead of being evaluated, which "
            "makes every further edit cheaper. Leave open to evaluate it."
        ),
    )


def report_text(lines: dict[str, Any]) -> str:
    """Write a report as "name: value" lines, numbers rounded for people."""

    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join(f"{name.replace('_', '-')}: {show(value)}" for name, value in lines.items())
