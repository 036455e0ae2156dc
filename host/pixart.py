"""PixArt (alpha, Sigma): its attention layers, and hooks on them for the length of a run.

PixArtMS hands no options to its attention and has no patch points. So the live layers are hooked
while a run samples: self-attention where queries, keys and values come out of one projection,
cross-attention around the layer. Layers without a rule run the host's own code.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.pixart.blocks import AttentionKVCompress, MultiHeadCrossAttention
from comfy.ldm.pixart.pixartms import PixArtMS
from torch import Tensor, nn

from ..attention.kernels import Attention
from ..attention.run import EditRun
from ..attention.sites import Site
from ..attention.store import SiteShape
from ..diffusion.errors import HostError, LatentError

POSITION_UNIT = 64
"""PixArtMS measures its position table in units of so many latent pixels, rounded; at half a unit
and less that is nothing, and it divides by zero."""

LAYERS = {
    "self": ("attn", ("qkv", "proj", "q_norm", "k_norm", "num_heads")),
    "cross": ("cross_attn", ("q_linear", "kv_linear", "proj", "num_heads")),
}


def is_pixart(network: Any) -> bool:
    """Whether a diffusion model is the host's PixArt (or derived from it)."""
    return isinstance(network, PixArtMS)


def enlargement(network: Any) -> int:
    """Return how often a network derived from PixArtMS repeats its latents before its patches."""
    return int(getattr(network, "enlarged", 1))


def token_stride(network: Any) -> int:
    """Return the latent pixels per side of one image token."""
    return max(int(network.patch_size) // enlargement(network), 1)


def check_pixart_size(network: Any, height: int, width: int) -> None:
    """Raise LatentError for a latent of a size that PixArt cannot take."""
    stride, scale = token_stride(network), enlargement(network)
    if height % stride or width % stride:
        raise LatentError(
            f"PixArt takes latents whose sides are multiples of {stride}, got {height} x {width}: "
            f"crop or resize the image to multiples of {8 * stride} pixels"
        )
    if round((height + width) * scale // 2 / POSITION_UNIT) < 1:
        side = POSITION_UNIT // 2 // scale
        raise LatentError(
            f"PixArt cannot take latents of {height} x {width}: height and width must be more than "
            f"{side} on average, which is {8 * side} pixels; enlarge the image"
        )


def pixart_sites(network: Any) -> tuple[Site, ...]:
    """List PixArt's attention layers in call order: self and cross of every block."""
    stride = token_stride(network)
    sites = []
    for index in range(len(network.blocks)):
        for kind in LAYERS:
            site = Site(kind, "block", index, 0, index, stride)
            find_layer(network, site)
            sites.append(site)
    return tuple(sites)


def find_layer(network: Any, site: Site) -> Any:
    """Return the live layer of a site. Raises: HostError if another pack put its own there."""
    name, parts = LAYERS[site.kind]
    layer = getattr(network.blocks[site.index], name, None)
    if not isinstance(layer, nn.Module) or not all(hasattr(layer, part) for part in parts):
        raise HostError(
            f"the {site.kind}-attention of block {site.index} is not PixArt's own but a "
            f"{type(layer).__name__}, which controllers cannot reach; remove the node that "
            "replaces it"
        )
    return layer


def pixart_shapes(network: Any, sites: tuple[Site, ...]) -> dict[Site, SiteShape]:
    """Return the widths of PixArt's attention layers, read from the live modules."""
    return {
        site: SiteShape(int(network.hidden_size), int(find_layer(network, site).num_heads))
        for site in sites
    }


@contextmanager
def pixart_hooks(network: Any, run: EditRun) -> Iterator[None]:
    """Let a run act on PixArt's attention for the length of a with block.

    Modules, weights and classes are not touched; everything is taken off at the end, whatever
    happened. Raises: HostError when keys are to be masked where they are compressed.
    """
    masked = run.masked_sites()
    with ExitStack() as stack:
        for site in run.facts.sites:
            layer = find_layer(network, site)
            if site.kind == "cross":
                stack.enter_context(shadowed(layer, cross_forward(run, site, layer)))
                continue
            handle = layer.qkv.register_forward_hook(swap_hook(run, site))
            stack.callback(handle.remove)
            if site in masked:
                refuse_compressed(site, layer)
                stack.enter_context(shadowed(layer, masked_forward(run, site, layer)))
        yield


@contextmanager
def shadowed(layer: nn.Module, forward: Callable) -> Iterator[None]:
    """Put a forward in front of a layer's own, on this instance, for the length of a block."""
    before = layer.__dict__.get("forward")
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if before is not None:
            layer.__dict__["forward"] = before


def swap_hook(run: EditRun, site: Site) -> Callable:
    """Return the hook that swaps rows of one self-attention's queries, keys and values.

    The projection acts token by token, so rows can be swapped behind it as well as before; only
    recorded attention, which holds the input, is projected anew. What follows the projection in a
    layer (norms of queries and keys, compression of keys and values) sees the swapped rows.
    """

    def hook(layer: nn.Module, inputs: tuple, projected: Tensor) -> Tensor | None:
        if run.layout is None:
            return None
        if not run.reads_inputs:
            parts = projected.chunk(3, dim=-1)
            chosen = run.self_inputs(site, *parts)
            same = all(a is b for a, b in zip(parts, chosen, strict=True))
            return None if same else torch.cat(chosen, dim=-1)
        x = inputs[0]
        parts = run.self_inputs(site, x, x, x)
        if all(part is x for part in parts):
            return None
        known = {id(x): projected}
        for part in parts:
            if id(part) not in known:
                known[id(part)] = layer.forward(part)
        thirds = (known[id(part)].chunk(3, dim=-1)[i] for i, part in enumerate(parts))
        return torch.cat(list(thirds), dim=-1)

    return hook


def cross_forward(run: EditRun, site: Site, layer: Any) -> Callable:
    """Return a cross-attention's forward under a run; the layer's own where nothing is asked."""
    plain, attention = layer.forward, fused(layer.num_heads)

    def forward(x: Tensor, cond: Tensor, mask: Any = None) -> Tensor:
        if run.layout is None or not run.looks_at(site):
            run.reach(site)
            return plain(x, cond, mask)
        q, k, v = project_cross(layer, x, cond)
        run.observe(site, q, k, attention, layer.num_heads)
        if run.edits(site):
            out = run.cross_attention(site, q, k, v, attention)
        else:
            run.reach(site)
            out = attention(q, k, v)
        return layer.proj_drop(layer.proj(out))

    return forward


def masked_forward(run: EditRun, site: Site, layer: Any) -> Callable:
    """Return a self-attention's forward whose target rows see masked keys where there is a mask."""
    plain, attention = layer.forward, fused(layer.num_heads)

    def forward(x: Tensor, mask: Any = None, HW: Any = None, block_id: Any = None) -> Tensor:
        if run.key_mask(site) is None:
            return plain(x, mask=mask, HW=HW, block_id=block_id)
        q, k, v = project_self(layer, x, HW)
        return layer.proj(run.self_attention(site, q, k, v, attention))

    return forward


@contextmanager
def watched_maps(
    network: Any, sites: Iterable[Site], take: Callable[[Site, Tensor, Tensor, int], None]
) -> Iterator[None]:
    """Hand on the queries and keys of cross-attention layers for the length of a with block.

    take: (site, queries, keys, heads), both "rows tokens channels"; nothing is changed.
    """
    with ExitStack() as stack:
        for site in sites:
            layer = find_layer(network, site)
            keep, hand = watching(site, layer.num_heads, take)
            stack.callback(layer.q_linear.register_forward_hook(keep).remove)
            stack.callback(layer.kv_linear.register_forward_hook(hand).remove)
        yield


def watching(site: Site, heads: int, take: Callable) -> tuple[Callable, Callable]:
    """Return the hooks of a layer's two projections; queries come first."""
    seen: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple, q: Tensor) -> None:
        seen[:] = [q]

    def hand(layer: nn.Module, inputs: tuple, projected: Tensor) -> None:
        q = seen.pop()
        take(site, q, split_keys(projected, len(q))[0], heads)

    return keep, hand


@contextmanager
def attending_with(function: Callable, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let PixArt's layers among modules use another of the host's attention functions.

    For gradients: PixArt's layers take no override, and some functions have no backward.
    """
    with ExitStack() as stack:
        for layer in modules:
            if isinstance(layer, AttentionKVCompress):
                stack.enter_context(shadowed(layer, self_with(function, layer)))
            elif isinstance(layer, MultiHeadCrossAttention):
                stack.enter_context(shadowed(layer, cross_with(function, layer)))
        yield


def self_with(function: Callable, layer: Any) -> Callable:
    """Return a self-attention's forward by a given attention function."""

    def forward(x: Tensor, mask: Any = None, HW: Any = None, block_id: Any = None) -> Tensor:
        return layer.proj(function(*project_self(layer, x, HW), layer.num_heads))

    return forward


def cross_with(function: Callable, layer: Any) -> Callable:
    """Return a cross-attention's forward by a given attention function."""

    def forward(x: Tensor, cond: Tensor, mask: Any = None) -> Tensor:
        out = function(*project_cross(layer, x, cond), layer.num_heads)
        return layer.proj_drop(layer.proj(out))

    return forward


def refuse_compressed(site: Site, layer: Any) -> None:
    """Raise HostError if a layer has fewer keys than the picture has tokens."""
    if getattr(layer, "sr_ratio", 1) > 1:
        raise HostError(
            f"the self-attention of block {site.index} compresses its keys {layer.sr_ratio} times, "
            "so they cannot be masked; use MasaCtrl-Controller without masks and words"
        )


def project_self(layer: Any, x: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, ...]:
    """Return queries, keys and values as a self-attention uses them, "rows tokens channels"."""
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if getattr(layer, "sr_ratio", 1) > 1:
        height, width = size or (int(x.shape[1] ** 0.5),) * 2
        k, v = (
            layer.downsample_2d(part, height, width, layer.sr_ratio, sampling=layer.sampling)[0]
            for part in (k, v)
        )
    return q, k, v


def project_cross(layer: Any, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a cross-attention, "rows tokens channels".

    cond: "1 rows*tokens channels", as the host lays out its contexts.
    """
    q = layer.q_linear(x)
    return q, *split_keys(layer.kv_linear(cond), len(x))


def split_keys(projected: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return keys and values, "rows tokens channels", of the host's joint projection of them."""
    k, v = projected.reshape(rows, -1, projected.shape[-1]).chunk(2, dim=-1)
    return k, v


def fused(heads: int) -> Attention:
    """Return the host's attention, its heads bound, as PixArt's layers call it."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return optimized_attention(q, k, v, heads)

    return attention
