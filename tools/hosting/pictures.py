"""Which nodes of a workflow show the edit, the reconstruction and the mask; adds missing ones."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]
SAMPLER = "RetraceEditSampler"
ROLES = {0: "edit", 1: "reconstruction", 2: "mask"}  # by the sampler's output
SHOWING = {"PreviewImage", "SaveImage"}


def picture_nodes(prompt: Prompt) -> dict[str, str]:
    """Return role -> id of the node that shows that output of the Edit-Sampler."""
    found: dict[str, str] = {}
    for key, node in prompt.items():
        role = _role(prompt, key) if node["class_type"] in SHOWING else None
        if role:
            found.setdefault(role, key)
    return found


def add_missing_pictures(prompt: Prompt) -> None:
    """Add nodes for what the workflow computes and does not show: edit, reconstruction, mask."""
    shown = picture_nodes(prompt)
    sampler = next((key for key, node in prompt.items() if node["class_type"] == SAMPLER), None)
    decoder = next((n for n in prompt.values() if n["class_type"] == "VAEDecode"), None)
    if sampler is None or decoder is None:
        return
    for slot, role in ROLES.items():
        if role in shown or (role == "mask" and not _has_mask(prompt)):
            continue
        if role == "mask":
            inputs = {"mask": [sampler, slot]}
            prompt["demo-mask"] = _node("MaskToImage", "Mask to image", inputs)
        else:
            inputs = {"samples": [sampler, slot], "vae": decoder["inputs"]["vae"]}
            prompt[f"demo-{role}"] = _node("VAEDecode", f"Decode the {role}", inputs)
        images = {"images": [f"demo-{role}", 0]}
        prompt[f"demo-show-{role}"] = _node("PreviewImage", f"Show the {role}", images)


def _node(class_type: str, title: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def _has_mask(prompt: Prompt) -> bool:
    """Tell whether anything asks for a mask: blend words, or a mask wired to the sampler."""
    inputs = [node["inputs"] for node in prompt.values()]
    words = any(given.get(name) for given in inputs for name in ("blend_source", "blend_target"))
    wired = any(n["class_type"] == SAMPLER and n["inputs"].get("mask") for n in prompt.values())
    return words or wired


def _role(prompt: Prompt, key: str) -> str | None:
    """Walk up the first links from a node to the Edit-Sampler; None if it does not lead there."""
    for _ in prompt:
        given = prompt[key]["inputs"].values()
        origin, slot = next((v for v in given if isinstance(v, list) and len(v) == 2), ("", 0))
        if origin not in prompt:
            return None
        if prompt[origin]["class_type"] == SAMPLER:
            return ROLES.get(slot)
        key = origin
    return None
