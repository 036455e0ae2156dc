"""Hooks that carry an EditRun into the host's UNet, on one run's own options and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..attention.run import EditRun
from ..attention.sites import ResidualBlock, Site
from ..diffusion.errors import HostError
from .compat import ATTENTION_TAKES_OPTIONS
from .guider import ACTIVE
from .pixart import is_pixart, pixart_hooks


def attach_unet(model_options: dict, run: EditRun) -> dict:
    """Return model options with the run's hooks added behind those that are there already.

    Self-attention inputs are swapped by an attn1 patch, which any number of packs can share;
    cross-attention goes through the block's replacement slot, chained to what was in it. Only
    self-attention whose keys are masked needs the slot of its block.
    Raises: HostError when such a slot is taken.
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
    if masked := run.masked_sites():
        attn1 = {**replaces.get("attn1", {})}
        for site in masked:
            refuse_taken(site, attn1)
            attn1[site.address] = self_replace(run, site)
        replaces["attn1"] = attn1
    transformer["patches"], transformer["patches_replace"] = patches, replaces
    options["transformer_options"] = transformer
    return options


def attach(model_options: dict, network: torch.nn.Module, run: EditRun) -> dict:
    """Return model options with a run's hooks; of a UNet only, others are hooked in place."""
    return model_options if is_pixart(network) else attach_unet(model_options, run)


@contextmanager
def network_hooks(network: torch.nn.Module, run: EditRun) -> Iterator[None]:
    """Let a run act where the host's options do not reach, for the length of a with block."""
    with residual_hooks(network, run), ExitStack() as stack:
        if is_pixart(network):
            stack.enter_context(pixart_hooks(network, run))
        yield


def self_patch(run: EditRun) -> Callable:
    """Return the attn1 patch of a run: swaps rows of the inputs of self-attention."""
    sites = {site.address: site for site in run.facts.sites if site.kind == "self"}

    def patch(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> tuple:
        if ACTIVE not in extra:
            return query, key, value
        site = sites[(*extra["block"], extra["block_index"])]
        return run.self_inputs(site, query, key, value)

    return patch


def foreign_self(model_options: dict, run: EditRun) -> dict[str, int]:
    """Return who else replaces self-attention that a rule feeds, with the number of layers.

    Such a replacement gets the queries, keys and values that the rule chose; what it makes of them
    is its own affair, so people are told.
    """
    replaces = model_options.get("transformer_options", {}).get("patches_replace", {})
    attn1 = replaces.get("attn1", {})
    owners: dict[str, int] = {}
    for site in run.self_sites() if attn1 else ():
        patch = attn1.get(site.address) or attn1.get((site.stage, site.index))
        if patch is not None:
            owners[owner(patch)] = owners.get(owner(patch), 0) + 1
    return owners


def owner(patch: Any) -> str:
    """Name another pack's patch by its module and name."""
    kind = patch if hasattr(patch, "__qualname__") else type(patch)
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse_taken(site: Site, attn1: dict) -> None:
    """Raise HostError if another pack replaces a self-attention whose keys are to be masked."""
    patch = attn1.get(site.address) or attn1.get((site.stage, site.index))
    if patch is not None:
        raise HostError(
            f"{owner(patch)} already replaces the self-attention of layer {site.stage}."
            f"{site.index}.{site.sub_index}, so its keys cannot be masked; remove that node, or "
            "use MasaCtrl-Controller without masks"
        )


def self_replace(run: EditRun, site: Site) -> Callable:
    """Return the replacement of one self-attention whose target rows see masked keys."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        attention = fused(extra)
        if ACTIVE not in extra:
            return attention(q, k, v)
        return run.self_attention(site, q, k, v, attention)

    return replace


@contextmanager
def residual_hooks(network: torch.nn.Module, run: EditRun) -> Iterator[None]:
    """Let a run change residual features for the length of a with block.

    The host offers no patch between a residual branch and its skip, so the branch's last layer
    gets a forward hook, removed at the end whatever happens; modules and weights are not touched.
    """
    with ExitStack() as stack:
        for block in sorted(run.residual_blocks()):
            layer = residual_layer(network, block)
            handle = layer.register_forward_hook(residual_hook(run, block))
            stack.callback(handle.remove)
        yield


def residual_layer(network: torch.nn.Module, block: ResidualBlock) -> torch.nn.Module:
    """Return the last layer of a residual branch, before the skip is added."""
    blocks = {"input": network.input_blocks, "output": network.output_blocks}[block.stage]
    layers = getattr(blocks[block.index][0], "out_layers", None)
    if layers is None:
        raise HostError(
            f"{block} of {type(network).__name__} is not a residual block, so its features cannot "
            "be injected; set feature_fraction to 0"
        )
    return layers[-1]


def residual_hook(run: EditRun, block: ResidualBlock) -> Callable:
    """Return the forward hook of one residual branch."""

    def hook(module: torch.nn.Module, inputs: tuple, h: Tensor) -> Tensor:
        return run.residual(block, h)

    return hook


def fused(extra: dict) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the host's attention with a block's own settings, other packs' override included."""

    settings = {"attn_precision": extra.get("attn_precision")}
    if ATTENTION_TAKES_OPTIONS:
        settings["transformer_options"] = extra

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return optimized_attention(q, k, v, extra["n_heads"], **settings)

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
        run.observe(site, q, k, attention, extra["n_heads"])
        if not run.edits(site):
            run.reach(site)
            return plain(q, k, v)
        out = run.cross_attention(site, q, k, v, attention)
        if before is not None:
            out = out + (before(q, k, v, extra) - attention(q, k, v))
        return out

    return replace
