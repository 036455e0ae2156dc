"""Write the networks into the files that demo/bundle.py loads, with how they came about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from retrace.demo.autoencoder import Autoencoder
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .autoencoder import to_pixels
from .denoiser import load_autoencoder

UNUSED = ("text_projection",)  # the pooled output is never trained; an identity stands in for it


def export(
    autoencoder: Path, denoiser: Path, pool: Path, target: Path, recipe: dict[str, str]
) -> None:
    """Write half-precision weights of the averaged denoiser, the text encoder and the autoencoder.

    recipe: metadata for the safetensors header, all text.
    """
    net = load_autoencoder(autoencoder)
    state = torch.load(denoiser, weights_only=True)
    tensors = {f"autoencoder.{name}": value for name, value in net.state_dict().items()}
    for name, value in state["ema"].items():
        if not any(word in name for word in UNUSED):
            tensors[name] = value
    halves = {name: value.half().contiguous() for name, value in tensors.items()}
    factors, bias = fit_preview(net, pool)
    halves |= {"preview.factors": factors, "preview.bias": bias}
    halves["vocabulary"] = torch.tensor(state["vocabulary"], dtype=torch.int32)
    steps = {"denoiser_steps": str(state["step"]), "denoiser_seconds": f"{state['spent']:.0f}"}
    save_file(halves, str(target), metadata={**recipe, **steps})


def export_transformer(checkpoint: Path, target: Path, recipe: dict[str, str]) -> None:
    """Write half-precision weights of the averaged transformer alone.

    recipe: metadata for the safetensors header, all text.
    """
    state = torch.load(checkpoint, weights_only=True)
    # in alphabetical order, so that the same checkpoint gives the same file
    halves = {name: state["ema"][name].half().contiguous() for name in sorted(state["ema"])}
    spent = {"denoiser_steps": str(state["step"]), "denoiser_seconds": f"{state['spent']:.0f}"}
    save_file(halves, str(target), metadata={**recipe, **spent})


@torch.inference_mode()
def fit_preview(net: Autoencoder, pool: Path, count: int = 512) -> tuple[Tensor, Tensor]:
    """Fit colours "4 3" and bias "3" that turn a latent into its picture's mean colours.

    Least squares over the cells of `count` pictures, colours in [-1, 1] as the host's previewer
    wants them.
    """
    pixels = to_pixels(np.load(pool / "pictures.npy", mmap_mode="r")[:count])
    latents = torch.cat([net.encode(part) for part in pixels.split(64)])
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    targets = F.avg_pool2d(pixels, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    solution = torch.linalg.lstsq(inputs, targets).solution
    return solution[:-1].contiguous(), solution[-1].contiguous()
