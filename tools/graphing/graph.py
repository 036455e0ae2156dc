"""A workflow being drawn: nodes checked against a live server's schemas, links, groups, places."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hosting.errors import HostError

from .slots import UPLOADS, Slot, read_slots

WIDTH, NOTE_WIDTH = 320, 400
TITLE, SLOT, WIDGET, TEXT, PICTURE = 30, 20, 24, 100, 260  # heights in the page's units
GAP, MARGIN, HEADING = 24, 20, 50
MUTED = 2  # litegraph's mode "never"
CORE_VERSION = "0.3.75"
GROUP_COLOURS = ("#3f789e", "#8A8", "#b58b2a", "#a1309b", "#88A")
# what may be chosen differs from machine to machine
FILE_WIDGETS = ("ckpt_name", "unet_name", "clip_name", "vae_name", "image", "file")


class DrawingError(HostError):
    """A description asks for something that the server's nodes do not have."""


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    node: Node
    slot: int
    type: str


@dataclass
class Node:
    """A node with its place; `node.name` gives the output of that name."""

    id: int
    type: str
    title: str
    outputs: list[tuple[str, str]]  # (name, type)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    links: dict[int, list[int]] = field(default_factory=dict)
    place: list[int] = field(default_factory=lambda: [0, 0])
    size: list[int] = field(default_factory=lambda: [WIDTH, 0])
    colours: dict[str, str] = field(default_factory=dict)
    mode: int = 0

    def __getattr__(self, name: str) -> Output:
        for slot, (known, kind) in enumerate(self.outputs):
            if known.lower().replace(" ", "_") == name:
                return Output(self, slot, kind)
        names = ", ".join(known.lower() for known, _ in self.outputs) or "none"
        raise AttributeError(f"{self.type} has no output {name}; it has {names}")

    def to_json(self) -> dict[str, Any]:
        """Return the node as the page saves it."""
        outputs = [
            {"name": name, "type": kind, "slot_index": slot, "links": self.links.get(slot, [])}
            for slot, (name, kind) in enumerate(self.outputs)
        ]
        saved = {
            "id": self.id,
            "type": self.type,
            "pos": self.place,
            "size": self.size,
            "flags": {},
            "order": self.id - 1,
            "mode": self.mode,
            "inputs": self.inputs,
            "outputs": outputs,
            "title": self.title,
            "properties": self.properties,
            "widgets_values": self.values,
            **self.colours,
        }
        if not self.title:
            del saved["title"]
        return saved


class Graph:
    """A workflow; groups go from left to right, the nodes of a group from top to bottom.

    object_info: the answer of a server's /object_info. pack, version: what Retrace is called in
    the registry.
    """

    def __init__(self, name: str, object_info: dict[str, Any], pack: str, version: str) -> None:
        self.name, self.object_info = name, object_info
        self.pack, self.version = pack, version
        self.nodes: list[Node] = []
        self.links: list[list[Any]] = []
        self.groups: list[dict[str, Any]] = []
        self._x, self._y, self._column = 0, 0, WIDTH
        self._mode = 0

    def note(self, title: str, text: str) -> None:
        """Put a note at the left; call it first."""
        node = Node(len(self.nodes) + 1, "MarkdownNote", title, [], values=[text])
        node.size = [NOTE_WIDTH, 60 + 22 * sum(1 + len(line) // 52 for line in text.splitlines())]
        node.colours = {"color": "#432", "bgcolor": "#653"}
        node.place = [self._x, HEADING]
        self.nodes.append(node)
        self._x += NOTE_WIDTH + 2 * GAP

    @contextmanager
    def group(self, title: str, width: int = WIDTH, *, muted: bool = False) -> Iterator[None]:
        """Draw the nodes added inside as one group, a column of its own.

        muted: the nodes do not run until the user switches them on.
        """
        self._mode = MUTED if muted else 0
        first, left = len(self.nodes), self._x
        self._y, self._column = HEADING + TITLE, width
        self._x += MARGIN
        yield
        self._mode = 0
        members = self.nodes[first:]
        bottom = max(node.place[1] + node.size[1] for node in members)
        right = max(node.place[0] + node.size[0] for node in members) + MARGIN
        number = len(self.groups)
        self.groups.append(
            {
                "id": number + 1,
                "title": title,
                "bounding": [left, 0, right - left, bottom + MARGIN],
                "color": GROUP_COLOURS[number % len(GROUP_COLOURS)],
                "font_size": 24,
                "flags": {},
            }
        )
        self._x = right + GAP

    def column(self) -> None:
        """Go on at the top of a new column of the same group."""
        self._x += self._column + GAP
        self._y = HEADING + TITLE

    def add(self, kind: str, title: str = "", models: list | None = None, **given: Any) -> Node:
        """Add a node; inputs by name, either a value or another node's output.

        models: files to download, as the page's dialog for missing models wants them.
        Raises: DrawingError for a node, an input or a value that the server does not know.
        """
        if kind not in self.object_info:
            raise DrawingError(f"the server has no node {kind}")
        described = self.object_info[kind]
        names = described.get("output_name") or described["output"]
        outputs = list(zip(names, described["output"], strict=True))
        node = Node(len(self.nodes) + 1, kind, title, outputs)
        node.mode = self._mode
        core = not kind.startswith("Retrace")
        node.properties = {
            "Node name for S&R": kind,
            "cnr_id": "comfy-core" if core else self.pack,
            "ver": CORE_VERSION if core else self.version,
        }
        if models:
            node.properties["models"] = models
        slots = read_slots(described)
        if unknown := set(given) - {slot.name for slot in slots}:
            raise DrawingError(f"{kind} has no input {', '.join(sorted(unknown))}")
        widgets = 0
        for slot in sorted(slots, key=lambda slot: slot.widget):  # as the page orders them
            self._connect(node, slot, given.get(slot.name))
            if slot.widget:
                multiline = slot.options.get("multiline", False)
                widgets += TEXT if multiline else WIDGET
        rows = max(len(node.inputs), len(node.outputs), 1)
        picture = PICTURE * (kind in ("PreviewImage", "SaveImage", "MaskPreview", "LoadImage"))
        node.size = [self._column, SLOT * rows + widgets + picture + 16]
        node.place = [self._x, self._y]
        self._y += node.size[1] + TITLE + GAP
        self.nodes.append(node)
        return node

    def _connect(self, node: Node, slot: Slot, given: Any) -> None:
        """Write one input of a new node: a link, a widget's value, or both."""
        where = f"{node.type}.{slot.name}"
        if isinstance(given, Output):
            if not slot.accepts(given.type):
                raise DrawingError(f"{where} is a {slot.type}, not a {given.type}")
            number = len(self.links) + 1
            target = len(node.inputs)
            self.links.append([number, given.node.id, given.slot, node.id, target, given.type])
            given.node.links.setdefault(given.slot, []).append(number)
        elif not slot.widget and given is not None:
            raise DrawingError(f"{where} takes an output, not {given!r}")
        else:
            number = None
        if slot.widget:
            value = slot.default if given is None or number else given
            if slot.name not in FILE_WIDGETS and (problem := slot.refuse(value)):
                raise DrawingError(f"{where}: {problem}")
            node.values.append(value)
            node.values += ["fixed"] * slot.control
            node.values += ["image"] * any(slot.options.get(key) for key in UPLOADS)
        elif slot.required and number is None:
            raise DrawingError(f"{where} needs an output of another node")
        if not slot.widget or number:
            entry = {"name": slot.name, "type": slot.type, "link": number}
            if slot.widget:
                entry["widget"] = {"name": slot.name}
            elif not slot.required:
                entry["shape"] = 7  # the page draws optional inputs as circles
            node.inputs.append(entry)

    def to_json(self) -> dict[str, Any]:
        """Return the workflow in the page's format 0.4."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.pack}/workflows/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": [node.to_json() for node in self.nodes],
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [40, 80]}},
            "version": 0.4,
        }


def write(workflow: dict[str, Any]) -> str:
    """Return the text of a workflow file: one node, link or group a line."""

    def show(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    lines = []
    for key, value in workflow.items():
        if isinstance(value, list) and value:
            inner = ",\n".join(f"  {show(item)}" for item in value)
            lines.append(f" {show(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {show(key)}: {show(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
