"""Link types of Retrace and small helpers shared by its nodes."""

import dataclasses
import functools
import inspect
from typing import Any

from comfy_api.latest import io

from ..attention.alignment import MODES
from ..host.given import check_choice, check_given, check_width
from ..host.gradients import CHECKPOINTING

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


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make a node check what it is given before it does anything; return it."""
    execute = node.execute.__func__
    if hasattr(execute, "__wrapped__"):
        return node

    names = list(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def with_checks(cls, *ordered: Any, **named: Any) -> io.NodeOutput:
        values = dict(zip(names, ordered, strict=False)) | named
        inputs = {given.id: given for given in cls.define_schema().inputs}
        texts = []
        for name, value in values.items():
            given = inputs.get(name)
            if given is None or (given.optional and value is None):
                continue
            kind = given.get_io_type()
            check_given(name, kind, value)
            if kind == "COMBO" and given.options:
                check_choice(name, given.options, value)
            texts += [(name, value)] if kind == "CONDITIONING" else []
        if values.get("model") is not None:
            check_width(values["model"], texts)
        return execute(cls, **values)

    node.execute = classmethod(with_checks)
    return node


def prompted_inputs() -> list[io.Input]:
    """Return what a controller of words begins with: model, pair of prompts, how they pair."""
    return [
        io.Model.Input("model", tooltip="The checkpoint's model, or another controller's."),
        Prompts.Input("prompts", tooltip="From Prompt-Pair."),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="auto",
            tooltip=(
                "'replace' swaps words one for one, 'refine' adds or removes words; 'auto' takes "
                "replace if the word counts agree."
            ),
        ),
    ]


def word_windows_input() -> io.Input:
    """Return the input for own windows of single words."""
    return io.String.Input(
        "word_windows",
        default="",
        tooltip=(
            "Own cross windows for target words, as fractions: 'dog: 0.8, wooden: 0.2-0.6'. "
            "Empty: none."
        ),
    )


def checkpointing_input() -> io.Input:
    """Return the choice of what an optimisation stores for its gradients."""
    return io.Combo.Input(
        "checkpointing",
        options=list(CHECKPOINTING),
        default="auto",
        optional=True,
        tooltip=(
            "Recomputes instead of storing: a third more time, a fraction of the memory, the same "
            "numbers. 'auto' starts when memory runs out, 'never' turns it off."
        ),
    )


def controlled_output() -> io.Output:
    """Return the output of a controller: the model that carries it."""
    return io.Model.Output(
        "model", display_name="model", tooltip="For the next controller or the Edit-Sampler."
    )


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
