"""A PixArt small enough for the demo's latents: ComfyUI's own network between convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENLARGED = 4
"""PixArtMS spaces its position table by the latent's side in units of 64 and divides by zero for
sides of 32 and less, so what it is given has this many times the latent's height and width."""


def make_class() -> type:
    """Give the network's class, made around the host's PixArtMS. Needs ComfyUI."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
    from comfy.ldm.pixart.pixartms import PixArtMS

    class DemoPixArt(PixArtMS):
        """PixArtMS between a stem and a tail of convolutions.

        The stem's features, `ENLARGED` squared for each channel of the latent, are laid out as an
        enlarged latent, so that a patch of 8 covers 2 x 2 cells; the transformer's output is
        gathered again the same way, joined with the stem's features, and drawn by a small UNet of
        residual blocks. Attention, and all that words do, is the host's. A bare PixArt of this size
        never learned the words for shapes (demo/README.md).
        """

        enlarged = ENLARGED

        def __init__(self, *, in_channels: int, operations: Any, **kwargs: Any) -> None:
            super().__init__(in_channels=in_channels, operations=operations, **kwargs)
            made = {"dtype": kwargs.get("dtype"), "device": kwargs.get("device")}
            width = in_channels * ENLARGED**2

            def blocks(*channels: int) -> nn.ModuleList:
                return nn.ModuleList(
                    ResBlock(before, self.hidden_size, 0.0, after, operations=operations, **made)
                    for before, after in pairwise(channels)
                )

            def convolution(before: int, after: int, stride: int = 1) -> nn.Module:
                return operations.Conv2d(before, after, 3, stride=stride, padding=1, **made)

            self.stem_in = convolution(in_channels, width)
            self.stem = blocks(width, width)
            self.join = blocks(2 * width, width, width)
            self.down = convolution(width, 2 * width, stride=2)
            self.middle = blocks(2 * width, 2 * width, 2 * width, 2 * width)
            self.up = convolution(2 * width, width)
            self.tail = blocks(2 * width, width, width)
            self.tail_norm = operations.GroupNorm(32, width, **made)
            self.tail_out = convolution(width, in_channels)

        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
            """Predict eps "batch 4 height width" of latents at variance-preserving scale."""
            level = self.t_embedder(timesteps, x.dtype)

            def run(blocks: nn.ModuleList, h: Tensor) -> Tensor:
                for block in blocks:
                    h = block(h, level)
                return h

            near = run(self.stem, self.stem_in(x))
            wide = F.pixel_shuffle(near, ENLARGED)
            far = super().forward(wide, timesteps, context, **kwargs)
            fine = run(self.join, torch.cat([near, F.pixel_unshuffle(far, ENLARGED)], dim=1))
            coarse = F.interpolate(run(self.middle, self.down(fine)), scale_factor=2)
            h = torch.cat([fine, self.up(coarse)], dim=1)
            return self.tail_out(F.silu(self.tail_norm(run(self.tail, h))))

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
