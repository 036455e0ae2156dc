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


def make_model_class() -> type:
    """Give the class of the host's model around the network. Needs ComfyUI."""
    from comfy.model_base import BaseModel, PixArt

    class DemoTransformer(PixArt):
        """The host's PixArt with `DemoPixArt` for its network."""

        def __init__(self, model_config: Any, model_type: Any, device: Any = None) -> None:
            # PixArt's own start takes no other network
            BaseModel.__init__(self, model_config, model_type, device, unet_model=make_class())

    return DemoTransformer
