"""The demo model's autoencoder: 128 x 128 pictures to 4 x 16 x 16 latents and back, in pure torch.

Made for speed on a CPU: nothing is convolved at more than a quarter of the picture's resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FACTOR = 8


class ResidualBlock(nn.Module):
    """Add a normalised two-convolution branch to the trunk.

    The norm sits inside the branch only, so that the trunk keeps the absolute colour.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // 16, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x)))))


class Encoder(nn.Module):
    """Map pictures in [-1, 1] to latents, at a quarter and then an eighth of the resolution."""

    def __init__(self, fine: int, coarse: int, depth: tuple[int, int], latent: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3 * 16, fine, 3, padding=1)
        self.fine = nn.Sequential(*(ResidualBlock(fine) for _ in range(depth[0])))
        self.down = nn.Conv2d(fine * 4, coarse, 1)
        self.coarse = nn.Sequential(*(ResidualBlock(coarse) for _ in range(depth[1])))
        self.head = nn.Conv2d(coarse, latent, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.fine(self.stem(F.pixel_unshuffle(pixels, 4)))  # [batch fine h/4 w/4]
        x = self.coarse(self.down(F.pixel_unshuffle(x, 2)))  # [batch coarse h/8 w/8]
        return self.head(x)


class Decoder(nn.Module):
    """Map latents back to pictures in [-1, 1]: the encoder mirrored."""

    def __init__(self, fine: int, coarse: int, depth: tuple[int, int], latent: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent, coarse, 3, padding=1)
        self.coarse = nn.Sequential(*(ResidualBlock(coarse) for _ in range(depth[0])))
        self.up = nn.Conv2d(coarse, fine * 4, 1)
        self.fine = nn.Sequential(*(ResidualBlock(fine) for _ in range(depth[1])))
        self.head = nn.Conv2d(fine, 3 * 16, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.up(self.coarse(self.stem(latent)))
        x = self.fine(F.pixel_shuffle(x, 2))  # [batch fine h/4 w/4]
        return F.pixel_shuffle(self.head(x), 4)  # [batch 3 h w]


class Autoencoder(nn.Module):
    """Encode and decode pictures with the interface that ComfyUI's VAE object expects.

    shift, scale: "latent 1 1"; followed during training so that latents have mean 0, variance 1.
    """

    def __init__(
        self,
        fine: int = 64,
        coarse: int = 128,
        encoder_depth: tuple[int, int] = (1, 2),
        decoder_depth: tuple[int, int] = (3, 2),
        latent: int = 4,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(fine, coarse, encoder_depth, latent)
        self.decoder = Decoder(fine, coarse, decoder_depth, latent)
        self.register_buffer("shift", torch.zeros(latent, 1, 1))
        self.register_buffer("scale", torch.ones(latent, 1, 1))

    def encode(self, pixels: Tensor) -> Tensor:
        """Give latents "batch latent h w" of pixels "batch 3 8h 8w" in [-1, 1]."""
        return (self.encoder(pixels) - self.shift) / self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Give the pixels "batch 3 height width", about [-1, 1], of latents."""
        return self.decoder(latent)
