"""PatchMerge on PixArt's self-attention, for the length of one model call."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..attention.patch_merge import MergeCall
from ..attention.sites import Site
from .pixart import find_layer, fused, is_pixart, shadowed


@contextmanager
def merging_layers(network: Any, call: MergeCall | None) -> Iterator[None]:
    """Let a call merge in PixArt's layers for the length of a with block; others have patches.

    A layer whose forward something else has replaced (masked keys) is left alone.
    """
    with ExitStack() as stack:
        for site in call.layers if call is not None and is_pixart(network) else ():
            layer = find_layer(network, site)
            if "forward" not in layer.__dict__:
                stack.enter_context(shadowed(layer, merged_forward(call, site, layer)))
        yield


def merged_forward(call: MergeCall, site: Site, layer: Any) -> Callable:
    """Return a self-attention's forward that merges tokens before and puts them back after.

    Where a run swaps rows behind the projection, tokens are merged behind it too; elsewhere
    before it, which saves the projection's share. Compressed keys stay on their grid.
    """
    plain, attention = layer.forward, fused(layer.num_heads)
    compressed = getattr(layer, "sr_ratio", 1) > 1
    whole = call.layers[site].merged == "all" and not compressed

    def forward(x: Tensor, mask: Any = None, HW: Any = None, block_id: Any = None) -> Tensor:
        if whole and not layer.qkv._forward_hooks:
            merged, _, _ = call.inputs(site, x, x, x)
            return call.output(site, plain(merged, mask=mask, HW=HW, block_id=block_id))
        parts = layer.qkv(x).chunk(3, dim=-1)
        q, k, v = call.inputs(site, *parts, metric=x, keys=not compressed)
        q, k = layer.q_norm(q), layer.k_norm(k)
        if compressed:
            height, width = HW or (int(x.shape[1] ** 0.5),) * 2
            k, v = (
                layer.downsample_2d(part, height, width, layer.sr_ratio, sampling=layer.sampling)[0]
                for part in (k, v)
            )
        return call.output(site, layer.proj(attention(q, k, v)))

    return forward
