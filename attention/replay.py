"""Source rows of a run read from a store instead of being evaluated beside the target's."""

from collections.abc import Collection, Mapping
from math import lcm

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from .kernels import replace_rows
from .map_guidance import cross_map
from .rows import SOURCE_COND, Role, RowLayout
from .rules import SelfRule
from .sites import ResidualBlock, Site
from .store import AttentionStore, Slot


def replayed_self_inputs(
    store: AttentionStore,
    layout: RowLayout,
    site: Site,
    step: int,
    rules: Mapping[str, SelfRule],
    parts: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value inputs with the target's rows taken from the store.

    parts: query, key, value, "rows tokens channels" each. rules: by guidance half.
    """
    query, key, value = parts
    for half, rule in rules.items():
        source = store.read(Slot("hidden", site, rule.source_half or half), step, query)
        rows = layout.slice(Role("target", half))
        if rule.query == "source":
            query = replace_rows(query, rows, source)
        if rule.key == "source":
            key = replace_rows(key, rows, source)
        if rule.value == "source":
            value = replace_rows(value, rows, source)
    return query, key, value


def replayed_cross_inputs(
    store: AttentionStore, site: Site, step: int, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the source's query and keys "images tokens channels" with the batch's own k and v.

    Keys of different lengths are repeated to a common one, as the host does for rows of one batch;
    repetition leaves attention unchanged.
    """
    source_q = store.read(Slot("query", site), step, q)
    source_k = store.read(Slot("key", site), step, k)
    length = lcm(k.shape[1], source_k.shape[1])
    repeats = length // k.shape[1]
    if repeats > 1:
        k, v = k.repeat(1, repeats, 1), v.repeat(1, repeats, 1)
    return source_q, source_k.repeat(1, length // source_k.shape[1], 1), k, v


def replayed_probe_inputs(
    store: AttentionStore, site: Site, step: int, q: Tensor, k: Tensor, layout: RowLayout
) -> tuple[Tensor, Tensor, RowLayout]:
    """Return a batch's queries and keys with the source's rows behind them, and their layout."""
    source_q, source_k, k, _ = replayed_cross_inputs(store, site, step, q, k, k)
    layout = RowLayout((*layout.roles, SOURCE_COND), layout.images)
    return torch.cat([q, source_q]), torch.cat([k, source_k]), layout


def replayed_maps(
    store: AttentionStore, sites: Collection[Site], step: int, like: Tensor
) -> dict[Site, Tensor]:
    """Return the source's cross-attention maps at a step, "images heads queries keys" by layer.

    like: a tensor on the device where they are compared.
    """
    maps = {}
    for site in sites:
        q, k = (store.read(Slot(part, site), step, like) for part in ("query", "key"))
        maps[site] = cross_map(q, k, store.spec.shape(site).heads)
    return maps


def replayed_residual(
    store: AttentionStore, layout: RowLayout, block: ResidualBlock, step: int, h: Tensor
) -> Tensor:
    """Return a residual branch's output, all target rows taken from the store.

    h: "rows channels height width".
    """
    source = store.read(Slot("feature", block), step, h)
    for role in layout.roles:
        if role.branch == "target":
            h = replace_rows(h, layout.slice(role), source)
    return h


def check_recorded(store: AttentionStore, wanted: Mapping[int, Collection[Slot]]) -> None:
    """Raise PlanError if the store lacks something. wanted: what is read, by step."""
    missing = [
        (slot, step)
        for step, slots in wanted.items()
        for slot in slots
        if not store.has(slot, step)
    ]
    if not missing:
        return
    slot, step = min(missing, key=lambda entry: (entry[1], str(entry[0].site)))
    half = "; it needs the negative prompt for that" if slot.half == "uncond" else ""
    raise PlanError(
        f"the attention store lacks {len(missing)} of the source's tensors that the controllers "
        f"read, first the {slot.part} of {slot.site} ({slot.half}) at step {step + 1}{half}: let "
        "Attention-Capture record these layers and steps, or disconnect the attention input"
    )
