"""Link types of Retrace and small helpers shared by its nodes."""

import dataclasses
from typing import Any

from comfy_api.latest import io

Trajectory = io.Custom("RETRACE_TRAJECTORY")
Prompts = io.Custom("RETRACE_PROMPTS")
Attention = io.Custom("RETRACE_ATTENTION")

CATEGORY = "image editing/retrace"

SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """Make a node schema, leaving out fields that an older host does not know."""
    fields.setdefault("category", CATEGORY)
    return io.Schema(**{name: value for name, value in fields.items() if name in SCHEMA_FIELDS})


def report_text(lines: dict[str, Any]) -> str:
    """Write a report as "name: value" lines, numbers rounded for people."""

    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join(f"{name.replace('_', '-')}: {show(value)}" for name, value in lines.items())
