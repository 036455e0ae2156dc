"""Train the demo's autoencoder on rendered scenes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from retrace.demo.autoencoder import Autoencoder
from torch import Tensor
from torch.nn import functional as F

from .workers import Budget, average_gradients, cosine_rate, save_checkpoint

PEAK = 1.5e-3
BATCH = 32
LATENT_NOISE = 0.05  # standard deviation; makes the decoder tolerant of a sampler's small errors


def train(rank: int, count: int, pool: Path, checkpoint: Path, minutes: float, seed: int) -> None:
    """Train until the budget is spent, or go on from `checkpoint` if it is there."""
    torch.manual_seed(seed)
    net = Autoencoder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), PEAK, betas=(0.9, 0.98), weight_decay=1e-3)
    budget, step = Budget(minutes * 60), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        budget, step = Budget(minutes * 60, state["spent"]), state["step"]
    torch.manual_seed(seed + 1000 * rank + step)
    pictures = np.load(pool / "pictures.npy", mmap_mode="r")
    saved = time.monotonic()
    while (share := budget.tick()) < 1:
        pixels = _draw_batch(pictures, BATCH // count)
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(PEAK, share)
        loss, mse = _loss(net, pixels)
        optimiser.zero_grad()
        loss.backward()
        average_gradients(net, count)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        if rank == 0 and step % 50 == 0:
            psnr = -10 * torch.log10(mse / 4)
            print(f"{step} {budget.spent:.0f}s loss {loss:.4f} psnr {psnr:.2f}", flush=True)
        if rank == 0 and time.monotonic() - saved > 90:
            saved = time.monotonic()
            save_checkpoint(checkpoint, _state(net, optimiser, budget, step))
    if rank == 0:
        save_checkpoint(checkpoint, _state(net, optimiser, budget, step))


def to_pixels(pictures: np.ndarray) -> Tensor:
    """Turn uint8 "batch height width 3" into "batch 3 height width" in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def _draw_batch(pictures: np.ndarray, size: int) -> Tensor:
    rows = torch.randint(len(pictures), (size,)).numpy()
    return to_pixels(pictures[rows]).contiguous(memory_format=torch.channels_last)


def _loss(net: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Give the edge-weighted L1 + 4 MSE and the plain MSE of a noisy round trip."""
    with torch.autocast("cpu", torch.bfloat16):
        raw = net.encoder(pixels)
    raw = raw.float()
    _follow_statistics(net, raw.detach())
    latent = (raw - net.shift) / net.scale
    with torch.autocast("cpu", torch.bfloat16):
        output = net.decode(latent + LATENT_NOISE * torch.randn_like(latent))
    error = output.float() - pixels
    weight = 1 + 2 * _edges(pixels)
    mse = error.square().mean()
    # the last term stops the raw latents from growing without end under the moving statistics
    loss = (weight * (error.abs() + 4 * error.square())).mean() + 1e-3 * raw.square().mean()
    return loss, mse.detach()


def _edges(pixels: Tensor) -> Tensor:
    """Give "batch 1 height width" in [0, 1]: local contrast, spread over three pixels."""
    high = F.max_pool2d(pixels, 3, 1, 1)
    low = -F.max_pool2d(-pixels, 3, 1, 1)
    return F.avg_pool2d((high - low).amax(1, keepdim=True).clamp(max=1), 3, 1, 1)


@torch.no_grad()
def _follow_statistics(net: Autoencoder, raw: Tensor, momentum: float = 0.02) -> None:
    # not shared between workers: each sees half of the data, the first one's are saved
    mean = raw.mean((0, 2, 3)).view(-1, 1, 1)
    spread = (raw - net.shift).square().mean((0, 2, 3)).sqrt().view(-1, 1, 1)
    net.shift.lerp_(mean, momentum)
    net.scale.lerp_(spread, momentum)


def _state(net: Autoencoder, optimiser: torch.optim.Optimizer, budget: Budget, step: int) -> dict:
    return {
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "spent": budget.spent,
        "step": step,
    }
