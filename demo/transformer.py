"""A PixArt small enough for the demo's latents: ComfyUI's own network between two resizings."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

ENLARGED = 4
"""PixArtMS spaces its position table by the latent's side in units of 64 and divides by zero for
sides of 32 and less, so latents are enlarged this often on the way in."""


def make_class() -> type:
    """Give the network's class, made around the host's PixArtMS. Needs ComfyUI."""
    from comfy.ldm.pixart.pixartms import PixArtMS

    class DemoPixArt(PixArtMS):
        """PixArtMS on latents repeated `ENLARGED` times and averaged again on the way out.

        A patch of 8 therefore covers 2 x 2 cells of the real latent. Everything between, and every
        attention layer, is the host's.
        """

        enlarged = ENLARGED

        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
            """Predict eps "batch 4 height width" of latents at variance-preserving scale."""
            wide = x.repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)
            return F.avg_pool2d(super().forward(wide, timesteps, context, **kwargs), ENLARGED)

    return DemoPixArt
