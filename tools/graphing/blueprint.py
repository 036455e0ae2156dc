"""The subgraph blueprint "Edit a photo by prompt": the plumbing of an edit behind six inputs."""

from __future__ import annotations

import uuid
from typing import Any

from .graph import Graph, Node, Output

NAME = "Edit a photo by prompt"
DESCRIPTION = (
    "Changes a photo by two sentences, what it shows and what it should show: DDIM inversion, "
    "Direct Inversion and Prompt-to-Prompt in one node."
)
ALIASES = ["image editing", "prompt to prompt", "inversion", "retrace"]
INPUTS = (
    ("model", "MODEL"),
    ("clip", "CLIP"),
    ("vae", "VAE"),
    ("image", "IMAGE"),
    ("source", "STRING"),
    ("target", "STRING"),
)
ENTRY, EXIT = -10, -20  # what the page calls the two sides of a subgraph


def draw_blueprint(info: dict[str, Any], pack: str, version: str) -> dict[str, Any]:
    """Return a workflow of one instance and its definition, as the page's library wants it."""
    graph = Graph("blueprint", info, pack, version)
    entry = Node(ENTRY, "entry", "", list(INPUTS))
    edited, reconstruction = _draw_inside(graph, entry)
    outputs = {"edited": edited, "reconstruction": reconstruction}
    links = [_as_object(link) for link in graph.links]
    for slot, output in enumerate(outputs.values()):
        number = len(links) + 1
        output.node.links.setdefault(output.slot, []).append(number)
        links.append(
            _as_object([number, output.node.id, output.slot, EXIT, slot, output.type])
        )
    definition = {
        "id": _id("definition"),
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": len(graph.nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "inputNode": {"id": ENTRY, "bounding": [-220, 80, 120, 40 + 20 * len(INPUTS)]},
        "outputNode": {"id": EXIT, "bounding": [1600, 80, 140, 40 + 20 * len(outputs)]},
        "inputs": [
            {
                "id": _id(f"input {name}"),
                "name": name,
                "type": kind,
                "linkIds": entry.links.get(slot, []),
                "pos": [-120, 100 + 20 * slot],
            }
            for slot, (name, kind) in enumerate(INPUTS)
        ],
        "outputs": [
            {
                "id": _id(f"output {name}"),
                "name": name,
                "type": output.type,
                "linkIds": [link["id"] for link in links if _ends_at(link, slot)],
                "pos": [1620, 100 + 20 * slot],
            }
            for slot, (name, output) in enumerate(outputs.items())
        ],
        "widgets": [],
        "nodes": [node.to_json() for node in graph.nodes],
        "groups": [],
        "links": links,
        "extra": {},
        "category": "image editing/retrace",
        "description": DESCRIPTION,
    }
    return {
        "id": _id("workflow"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_instance(definition, pack, version)],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {"BlueprintDescription": DESCRIPTION, "BlueprintSearchAliases": ALIASES},
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
    }


def _draw_inside(graph: Graph, entry: Node) -> tuple[Output, Output]:
    with graph.group("encode"):
        latent = graph.add("VAEEncode", pixels=entry.image, vae=entry.vae).latent
        source = graph.add("CLIPTextEncode", "Source prompt", clip=entry.clip, text=entry.source)
        negative = graph.add("CLIPTextEncode", "Negative prompt", clip=entry.clip).conditioning
        pair = graph.add(
            "RetracePromptPair", clip=entry.clip, source=entry.source, target=entry.target
        )
    with graph.group("invert"):
        trajectory = graph.add(
            "RetraceInvertDDIM", model=entry.model, positive=source.conditioning, latent=latent
        ).trajectory
        pinned = graph.add("RetraceInvertDirectInversion", trajectory=trajectory).trajectory
    with graph.group("edit"):
        model = graph.add(
            "RetraceP2PController", model=entry.model, prompts=pair.prompts
        ).model
        edit = graph.add(
            "RetraceEditSampler", model=model, trajectory=pinned, positive=pair.target,
            negative=negative,
        )  # fmt: skip
    with graph.group("decode"):
        images = [
            graph.add("VAEDecode", samples=latent, vae=entry.vae).image
            for latent in (edit.edited, edit.source)
        ]
    return images[0], images[1]


def _instance(definition: dict[str, Any], pack: str, version: str) -> dict[str, Any]:
    inputs = []
    for name, kind in INPUTS:
        entry = {"name": name, "type": kind, "link": None}
        inputs.append(entry | ({"widget": {"name": name}} if kind == "STRING" else {}))
    return {
        "id": 1,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [400, 340],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": output["name"], "type": output["type"], "links": []}
            for output in definition["outputs"]
        ],
        "title": NAME,
        "properties": {
            "proxyWidgets": [["-1", "source"], ["-1", "target"]],
            "cnr_id": pack,
            "ver": version,
        },
        "widgets_values": ["a photo of a cat", "a photo of a dog"],
    }


def _as_object(link: list[Any]) -> dict[str, Any]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(keys, link, strict=True))


def _ends_at(link: dict[str, Any], slot: int) -> bool:
    return (link["target_id"], link["target_slot"]) == (EXIT, slot)


def _id(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"retrace/blueprint/{what}"))
