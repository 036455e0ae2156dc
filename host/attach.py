"""Hooks that carry an EditRun into the host's UNet, on one run's own options and nowhere else."""

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..attention.run import EditRun
from ..attention.sites import Site
from .guider import ACTIVE


def attach_unet(model_options: dict, run: EditRun) -> dict:
    """Return model options with the run's hooks added behind those that are there already.

    Self-attention inputs are swapped by an attn1 patch, which any number of packs can share;
    cross-attention goes through the block's replacement slot, chained to what was in it.
    """
    options = {**model_options}
    transformer = {**options.get("transformer_options", {})}
    patches = {**transformer.get("patches", {})}
    patches["attn1_patch"] = [*patches.get("attn1_patch", []), self_patch(run)]
    replaces = {**transformer.get("patches_replace", {})}
    attn2 = {**replaces.get("attn2", {})}
    for site in run.facts.sites:
        if site.kind == "cross":
            before = attn2.get(site.address) or attn2.get((site.stage, site.index))
            attn2[site.address] = cross_replace(run, site, before)
    replaces["attn2"] = attn2
    transformer["patches"], transformer["patches_replace"] = patches, replaces
    options["transformer_options"] = transformer
    return options


def self_patch(run: EditRun) -> Callable:
    """Return the attn1 patch of a run: swaps rows of the inputs of self-attention."""
    sites = {site.address: site for site in run.facts.sites if site.kind == "self"}

    def patch(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> tuple:
        if ACTIVE not in extra:
            return query, key, value
        site = sites[(*extra["block"], extra["block_index"])]
        return run.self_inputs(site, query, key, value)

    return patch


def fused(extra: dict) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the host's attention with a block's own settings, other packs' override included."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return optimized_attention(
            q,
            k,
            v,
            extra["n_heads"],
            attn_precision=extra.get("attn_precision"),
            transformer_options=extra,
        )

    return attention


def cross_replace(run: EditRun, site: Site, before: Any) -> Callable:
    """Return the replacement of one cross-attention, keeping what another pack put there.

    Additive replacers (IPAdapter, InstantID, PuLID) are kept exactly: their output minus plain
    attention is added to ours.
    """

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        attention = fused(extra)
        plain = attention if before is None else (lambda *args: before(*args, extra))
        if ACTIVE not in extra:
            return plain(q, k, v)
        if not run.edits(site):
            run.reach(site)
            return plain(q, k, v)
        out = run.cross_attention(site, q, k, v, attention)
        if before is not None:
            out = out + (before(q, k, v, extra) - attention(q, k, v))
        return out

    return replace
