"""Edit directions: the difference of mean text embeddings, added to a conditioning."""

import json
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import PlanError

FORMAT, VERSION = "retrace-direction", "1"


class EditDirection(NamedTuple):
    """From what the photo shows towards what it should show.

    tokens: "1 tokens dim", token by token as published. pooled: "1 dim" of models whose pooled
    vector matters (SDXL), or None. note: what it was made from, for people.
    Source: Parmar et al. 2023 (arXiv:2302.03027), Sec. 3.1.
    """

    tokens: Tensor
    pooled: Tensor | None
    note: str = ""


def add_direction(conditioning: list, direction: EditDirection, strength: float) -> list:
    """Return a conditioning moved along a direction; strength 0 returns it as it is.

    A direction made from shorter prompts moves the first tokens only; a longer one is cut.
    Raises: PlanError when the embeddings are of different text encoders.
    """
    return [
        [move(entry[0], direction.tokens, strength), move_pooled(entry[1], direction, strength)]
        for entry in conditioning
    ]


def move(embedding: Tensor, tokens: Tensor, strength: float) -> Tensor:
    """Return "batch tokens dim" plus strength times the direction fitted to its length."""
    if embedding.shape[-1] != tokens.shape[-1]:
        raise PlanError(
            f"the direction has width {tokens.shape[-1]} but the conditioning "
            f"{embedding.shape[-1]}: both must come from the same text encoder"
        )
    missing = embedding.shape[1] - tokens.shape[1]
    fitted = F.pad(tokens, (0, 0, 0, missing)) if missing > 0 else tokens[:, : embedding.shape[1]]
    return embedding + strength * fitted.to(embedding)


def move_pooled(extra: dict, direction: EditDirection, strength: float) -> dict:
    """Return a conditioning's other values with its pooled vector moved too.

    Raises: PlanError when the pooled vectors are of different text encoders.
    """
    pooled = extra.get("pooled_output")
    if pooled is None or direction.pooled is None:
        return dict(extra)
    if pooled.shape[-1] != direction.pooled.shape[-1]:
        raise PlanError(
            f"the direction's pooled vector has width {direction.pooled.shape[-1]} but the "
            f"conditioning's {pooled.shape[-1]}: both must come from the same text encoder"
        )
    return {**extra, "pooled_output": pooled + strength * direction.pooled.to(pooled)}


def to_bytes(direction: EditDirection) -> bytes:
    """Return a direction as the bytes of a safetensors file with a readable header."""
    tensors = {"tokens": direction.tokens.float().cpu().contiguous()}
    if direction.pooled is not None:
        tensors["pooled"] = direction.pooled.float().cpu().contiguous()
    return safetensors.torch.save(
        tensors, {"format": FORMAT, "version": VERSION, "note": direction.note}
    )


def from_bytes(data: bytes) -> EditDirection:
    """Read a direction back; nothing in the file is executed. Raises: PlanError if it is none."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            "this is not a direction file, or it is cut short; choose one that Save-Direction wrote"
        ) from error
    tokens, pooled = tensors.get("tokens"), tensors.get("pooled")
    if header.get("format") != FORMAT or header.get("version") != VERSION or tokens is None:
        raise PlanError(
            f"this file holds {str(header.get('format'))[:40]!r} of version "
            f"{str(header.get('version'))[:20]!r}, expected {FORMAT!r} of version {VERSION!r}"
        )
    right = tokens.ndim == 3 and len(tokens) == 1 and (pooled is None or pooled.ndim == 2)
    if not right or not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise PlanError("the direction file holds NaN, Inf or tensors of the wrong shape")
    return EditDirection(tokens, pooled, str(header.get("note", "")))
