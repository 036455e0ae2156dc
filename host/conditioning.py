"""The host's CONDITIONING of several roles merged into one cond whose rows belong to roles."""

import uuid
from collections.abc import Sequence
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ..diffusion.errors import HostError


def check_conditioning(name: str, conditioning: Any) -> None:
    """Raise HostError if a CONDITIONING has a form that cannot ride in one row."""
    if not isinstance(conditioning, list) or not conditioning:
        raise HostError(f"the {name} conditioning is empty; connect a CLIP Text Encode")


def single_entry(name: str, entries: Sequence[dict], sigma: Tensor) -> dict:
    """Return the one entry of a processed cond list that is active at sigma.

    Raises: HostError naming what cannot be combined with an edit.
    """
    level = float(sigma)
    active = [
        entry
        for entry in entries
        if not (
            ("timestep_start" in entry and level > entry["timestep_start"])
            or ("timestep_end" in entry and level < entry["timestep_end"])
        )
    ]
    if len(active) != 1:
        raise HostError(
            f"the {name} conditioning has {len(active)} parts at sigma {level:.3g}; an edit needs "
            "exactly one: remove Conditioning (Combine) or close the gap in its time ranges"
        )
    entry = active[0]
    for key, title in (("area", "Conditioning (Set Area)"), ("mask", "Conditioning (Set Mask)"),
                       ("gligen", "GLIGEN")):
        if entry.get(key) is not None:
            raise HostError(
                f"the {name} conditioning uses {title}, which an edit cannot combine with its "
                "branches; use the Edit-Sampler's mask input instead"
            )
    return entry


def merge_entries(
    names: Sequence[str],
    entries: Sequence[dict],
    images: int,
    embeddings: Sequence[Tensor | None],
) -> dict:
    """Return one cond entry whose rows are those of `entries`, `images` rows each, in order.

    embeddings: "images-or-1 tokens dim" or None per entry; replaces the entry's text embedding.
    Raises: HostError when the entries cannot ride in one batch.
    """
    columns: dict[str, list] = {}
    for name, entry, embedding in zip(names, entries, embeddings, strict=True):
        conds = dict(entry["model_conds"])
        if embedding is not None:
            conds["c_crossattn"] = comfy.conds.CONDCrossAttn(embedding)
        for key, cond in conds.items():
            columns.setdefault(key, []).append(
                cond.process_cond(batch_size=images, area=None, device=None)
            )
        lacking = [key for key, column in columns.items() if key not in conds]
        if lacking:
            raise HostError(f"the {name} conditioning lacks {lacking[0]!r}, which another one has")
    merged = {}
    for key, column in columns.items():
        if len(column) != len(entries):
            raise HostError(f"only some of {', '.join(names)} carry {key!r}; make them alike")
        first, others = column[0], column[1:]
        if not all(first.can_concat(other) for other in others):
            raise HostError(
                f"{key!r} differs in shape between {', '.join(names)}: encode source, target and "
                "negative prompt with the same CLIP, at similar lengths"
            )
        merged[key] = first._copy_with(first.concat(others)) if others else first
    hooks = {id(entry.get("hooks")): entry.get("hooks") for entry in entries}
    if len(hooks) > 1:
        raise HostError(
            f"{', '.join(names)} carry different hooks; set the same hooks on all of them"
        )
    result: dict[str, Any] = {"model_conds": merged, "uuid": uuid.uuid4()}
    if (hook := entries[0].get("hooks")) is not None:
        result["hooks"] = hook
    controls = [entry.get("control") for entry in entries]
    if any(control is not None for control in controls):
        result["control"] = RowControl(controls, images)
    return result


class RowControl:
    """ControlNets of a merged cond: each role's own control sees that role's rows only."""

    def __init__(self, controls: Sequence[Any], images: int) -> None:
        self.controls, self.images = list(controls), images

    def get_control(
        self, x: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict
    ) -> dict | None:
        """Return the controls' residuals of all rows, zero for roles without a control."""
        residuals: dict[str, list] = {}
        for control in {id(c): c for c in self.controls if c is not None}.values():
            roles = [i for i, own in enumerate(self.controls) if own is control]
            rows = torch.cat(
                [torch.arange(i * self.images, (i + 1) * self.images) for i in roles]
            ).to(x.device)
            part = {
                key: value[rows] if isinstance(value, Tensor) and len(value) == len(x) else value
                for key, value in cond.items()
            }
            out = control.get_control(x[rows], t[rows], part, len(roles), transformer_options)
            for place, tensors in (out or {}).items():
                slots = residuals.setdefault(place, [None] * len(tensors))
                for slot, tensor in enumerate(tensors):
                    if tensor is not None:
                        slots[slot] = add_rows(slots[slot], tensor, rows, len(x))
        return residuals or None


def add_rows(total: Tensor | None, part: Tensor, rows: Tensor, count: int) -> Tensor:
    """Add a part's rows into a tensor of `count` rows (zeros when there is none yet)."""
    if total is None:
        total = part.new_zeros((count, *part.shape[1:]))
    return total.index_add(0, rows, part.expand(len(rows), *part.shape[1:]))
