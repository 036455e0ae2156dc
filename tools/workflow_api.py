"""Turn a workflow as the page saves it into the form that the server runs, as the page itself does.

The saved form lists widget values by position; only the server's /object_info knows their names.
Reroutes, primitives and notes exist in the page alone; a bypassed node hands its input through; a
muted node is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hosting.errors import HostError

Prompt = dict[str, dict[str, Any]]
ALWAYS, MUTED, BYPASSED = 0, 2, 4  # litegraph's node modes
PAGE_ONLY = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
EMPTY = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
UPLOADS = ("image_upload", "video_upload", "audio_upload")


class WorkflowError(HostError):
    """A workflow cannot be turned into something that this server can run."""


@dataclass(frozen=True)
class Link:
    """One wire: where it comes from."""

    node: str
    slot: int


@dataclass(frozen=True)
class Value:
    """What a primitive node gives to the widget it is wired to."""

    value: Any


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """Return the API form of a workflow; one that is in that form already is returned as it is.

    object_info: the answer of the server's /object_info.
    Raises: WorkflowError if it uses a node type that the server does not have, or a subgraph.
    """
    if "nodes" not in workflow:
        if workflow and all("class_type" in node for node in workflow.values()):
            return workflow
        raise WorkflowError("this is no ComfyUI workflow: it has neither nodes nor class types.")
    graph = _Graph(workflow)
    graph.check_types(object_info)
    prompt = {}
    for key, node in graph.nodes.items():
        if node.get("mode", ALWAYS) in (MUTED, BYPASSED) or graph.is_virtual(node):
            continue
        described = object_info[node["type"]]
        inputs = widget_values(node, described)
        for slot in node.get("inputs") or []:
            origin = graph.origin(slot)
            if isinstance(origin, Value):
                inputs[slot["name"]] = origin.value
            elif origin:
                inputs[slot["name"]] = [origin.node, origin.slot]
        title = node.get("title") or described.get("display_name") or node["type"]
        prompt[key] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def widget_values(node: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Return a node's widget values by name; a value that was not saved is the declared default."""
    saved = node.get("widgets_values")
    saved = [] if saved is None else saved
    if isinstance(saved, dict):  # some nodes save them by name
        names = [name for name, _ in _widgets(described) if name]
        return {name: _wrap(saved[name]) for name in names if name in saved}
    values = {}
    for i, (name, spec) in enumerate(_widgets(described)):
        if name:
            values[name] = _wrap(saved[i] if i < len(saved) else _default(spec))
    return values


def _widgets(described: dict[str, Any]) -> Iterator[tuple[str, list]]:
    """Yield (name, spec) in the order of the page's widgets; "" for those it keeps to itself.

    The page adds a "control after generate" choice behind a seed and an upload button behind the
    required inputs, and both take a place among the saved values.
    """
    for group in ("required", "optional"):
        specs = described["input"].get(group) or {}
        uploads = 0
        for name in described.get("input_order", {}).get(group) or specs:
            kind, options = _kind(specs[name])
            if options.get("forceInput") or kind not in WIDGET_TYPES:
                continue
            yield name, specs[name]
            control = options.get("control_after_generate")
            if control is None:
                control = kind == "INT" and name in ("seed", "noise_seed")
            if control:
                yield "", []
            uploads += any(options.get(key) for key in UPLOADS)
        if uploads:
            yield "", []


def _kind(spec: list) -> tuple[str, dict[str, Any]]:
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    return options.get("widgetType", kind), options


def _default(spec: list) -> Any:
    kind, options = _kind(spec)
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options") or []
        return choices[0] if choices else None
    return EMPTY.get(kind)


def _wrap(value: Any) -> Any:
    """Mark a list as a value: a bare list means a link in the API form."""
    return {"__value__": value} if isinstance(value, list) else value


class _Graph:
    """Nodes and links of a saved workflow, by id."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.nodes = {str(node["id"]): node for node in workflow["nodes"]}
        subgraphs = {
            subgraph["id"] for subgraph in workflow.get("definitions", {}).get("subgraphs", [])
        }
        if used := [node["id"] for node in workflow["nodes"] if node["type"] in subgraphs]:
            raise WorkflowError(
                f"node {used[0]} is a subgraph: unpack it in ComfyUI and save the workflow again."
            )
        self.links: dict[int, tuple[Link, str]] = {}
        for link in workflow["links"]:
            if isinstance(link, dict):
                link = [
                    link[key]
                    for key in (
                        "id",
                        "origin_id",
                        "origin_slot",
                        "target_id",
                        "target_slot",
                        "type",
                    )
                ]
            self.links[link[0]] = Link(str(link[1]), link[2]), str(link[5])

    def is_virtual(self, node: dict[str, Any]) -> bool:
        """Tell whether a node exists in the page only."""
        return node["type"] in PAGE_ONLY or node["type"] in ("Reroute", "PrimitiveNode")

    def check_types(self, object_info: dict[str, Any]) -> None:
        """Raise WorkflowError for node types that would have to run and are not there."""
        active = [
            node
            for node in self.nodes.values()
            if node.get("mode", ALWAYS) not in (MUTED, BYPASSED)
        ]
        unknown = {node["type"] for node in active if not self.is_virtual(node)} - set(object_info)
        if unknown:
            raise WorkflowError(
                f"the server has no node type {', '.join(sorted(unknown))}: see its log for a "
                "pack that did not load."
            )

    def origin(self, slot: dict[str, Any]) -> Link | Value | None:
        """Follow an input's wire to a node that runs or a primitive; None if it ends nowhere."""
        kind, seen = str(slot.get("type", "*")), set()
        number = slot.get("link")
        while number in self.links and number not in seen:
            seen.add(number)
            link, link_type = self.links[number]
            node = self.nodes.get(link.node)
            if node is None or node.get("mode", ALWAYS) == MUTED:
                return None
            if node["type"] == "PrimitiveNode":
                values = node.get("widgets_values") or []
                return Value(_wrap(values[0])) if values else None
            if node.get("mode", ALWAYS) == BYPASSED:
                number = _through(node, link.slot, link_type if kind == "*" else kind)
            elif node["type"] == "Reroute":
                number = (node.get("inputs") or [{}])[0].get("link")
            else:
                return link
        return None


def _through(node: dict[str, Any], slot: int, kind: str) -> int | None:
    """Return the link a bypassed node hands through: an input of that type, same place first."""
    inputs = node.get("inputs") or []
    for candidate in inputs[slot : slot + 1] + inputs:
        if str(candidate.get("type")) == kind:
            return candidate.get("link")
    return None
