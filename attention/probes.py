"""Columns of cross-attention maps, read out by one extra fused call. No map is built."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import Attention, edit_values, tile_tokens
from .rows import SOURCE_COND, TARGET_COND, Role, RowLayout
from .rules import CrossRule, Probe


def read_columns(
    attention: Attention, q: Tensor, k: Tensor, columns: Tensor, heads: int
) -> Tensor:
    """Return weighted sums of a map's columns, mean over heads: "rows queries columns", float32.

    q: "rows queries heads*dim"; k: "rows keys heads*dim"; columns: "rows keys columns".
    Column j of a map M is M e_j: e_j rides as a value, padded with zeros to the heads' width, so
    that a fused attention computes it in O(queries). More columns than the width take more calls.
    """
    rows, keys, wanted = columns.shape
    width = k.shape[2] // heads
    parts = []
    for start in range(0, wanted, width):
        part = columns[:, :, start : start + width]
        values = k.new_zeros(rows, keys, heads, width)
        values[..., : part.shape[2]] = part[:, :, None].to(k)
        out = attention(q, k, values.flatten(2)).unflatten(2, (heads, width))
        parts.append(out[..., : part.shape[2]].float().mean(2))
    return torch.cat(parts, dim=2)


def probe_maps(
    q: Tensor,
    k: Tensor,
    layout: RowLayout,
    rule: CrossRule | None,
    probe: Probe,
    attention: Attention,
    heads: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Return what a probe asks of one cross-attention: "images queries columns" of both branches.

    q: "rows queries heads*dim"; k: "rows keys heads*dim". None for a branch that is not asked for,
    or whose edited map is zero. The target's map is the edited one, M_s W + M_t diag(w): its
    columns are the rule's edit of the columns, as its output is that of the values.
    One call of `attention`, on the source's and the target's conditional rows.
    """
    asked: dict[Role, list[tuple[str, Tensor]]] = {SOURCE_COND: [], TARGET_COND: []}
    if probe.source is not None:
        source = tile_tokens(probe.source.to(k.device), k.shape[1], 0, share=False)
        asked[SOURCE_COND].append(("source", source))
    if probe.target is not None:
        target = tile_tokens(probe.target.to(k.device), k.shape[1], 0, share=False)
        mapped, weighted = (None, target[None])
        if rule is not None:
            mapped, weighted = edit_values(rule, target[None], k.shape[1])
        if mapped is not None:
            asked[SOURCE_COND].append(("target", mapped[0]))
        if weighted is not None:
            asked[TARGET_COND].append(("target", weighted[0]))
    asked = {role: columns for role, columns in asked.items() if columns}
    found: dict[str, Tensor] = {}
    if asked:
        queries, keys = (torch.cat([x[layout.slice(role)] for role in asked]) for x in (q, k))
        columns = stack_columns(asked.values(), layout.images)
        maps = read_columns(attention, queries, keys, columns, heads)
        for start, columns in zip(range(0, len(maps), layout.images), asked.values(), strict=True):
            first = 0
            for name, column in columns:
                last = first + column.shape[1]
                seen = maps[start : start + layout.images, :, first:last]
                found[name] = found[name] + seen if name in found else seen
                first = last
    return found.get("source"), found.get("target")


def stack_columns(asked: Iterable[list[tuple[str, Tensor]]], images: int) -> Tensor:
    """Return each role's columns side by side, "rows keys columns", padded to one count."""
    merged = [torch.cat([column for _, column in columns], dim=1) for columns in asked]
    widest = max(columns.shape[1] for columns in merged)
    padded = [F.pad(columns, (0, widest - columns.shape[1])) for columns in merged]
    return torch.stack(padded).repeat_interleave(images, dim=0)
