"""Train the denoiser and its text encoder on cached latents."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from retrace.demo.autoencoder import Autoencoder
from retrace.evaluation.scenes.captions import DETAIL_PROBABILITIES, DETAILS
from torch import Tensor

from .autoencoder import to_pixels
from .networks import Denoiser
from .tokens import tokenise
from .workers import Budget, average_training, cosine_rate, save_checkpoint

PEAK = 1e-3
BATCH = 32
EMA = 0.9985
DROPPED = 0.1  # share of captions replaced by the empty one
LOCAL_STEPS = 8  # steps that workers take on their own before they average
ENCODE_BATCH = 64


def cache_latents(rank: int, count: int, pool: Path, checkpoint: Path) -> None:
    """Encode the pool's pictures with the trained encoder into pool/latents<rank>.npy."""
    net = load_autoencoder(checkpoint)
    pictures = np.load(pool / "pictures.npy", mmap_mode="r")
    share = np.array_split(np.arange(len(pictures)), count)[rank]
    latents = np.empty((len(share), 4, 16, 16), np.float32)
    for start in range(0, len(share), ENCODE_BATCH):
        rows = share[start : start + ENCODE_BATCH]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            encoded = net.encode(to_pixels(pictures[rows]))
        latents[start : start + len(rows)] = encoded.float().numpy()
    np.save(pool / f"latents{rank}.npy", latents)


def load_autoencoder(checkpoint: Path) -> Autoencoder:
    """Load a trained autoencoder for use."""
    net = Autoencoder().eval()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["net"])
    return net


def train(rank: int, count: int, pool: Path, checkpoint: Path, minutes: float, seed: int) -> None:
    """Train until the budget is spent, or go on from `checkpoint` if it is there."""
    latents, tokens, vocabulary = _load_data(pool, count)
    torch.manual_seed(seed)
    net = Denoiser(vocabulary)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), PEAK, betas=(0.9, 0.98), weight_decay=0.01)
    budget, step = Budget(minutes * 60), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        average, step = state["ema"], state["step"]
        budget = Budget(minutes * 60, state["spent"])
    torch.manual_seed(seed + 1000 * rank + step)
    alphas = alphas_bar()
    saved, running = time.monotonic(), []
    while (share := budget.tick()) < 1:
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(PEAK, share)
        for _ in range(LOCAL_STEPS):
            loss = _loss(net, *_draw_batch(latents, tokens, BATCH // count), alphas)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            running.append(float(loss.detach()))
        average_training(net, optimiser, count)
        step += LOCAL_STEPS
        if rank:
            continue
        _follow(average, net, min(EMA, (1 + step) / (10 + step)) ** LOCAL_STEPS)
        if len(running) >= 100:
            print(f"{step} {budget.spent:.0f}s loss {np.mean(running):.4f}", flush=True)
            running.clear()
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save_checkpoint(checkpoint, _state(net, average, optimiser, budget, step, vocabulary))
    if rank == 0:
        save_checkpoint(checkpoint, _state(net, average, optimiser, budget, step, vocabulary))


def alphas_bar() -> Tensor:
    """Give SD's scaled-linear cumulative alphas, "1000"."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0).float()


def _load_data(pool: Path, count: int) -> tuple[Tensor, Tensor, list[int]]:
    latents = np.concatenate([np.load(pool / f"latents{rank}.npy") for rank in range(count)])
    rows, vocabulary = tokenise(np.load(pool / "captions.npy"))
    return torch.from_numpy(latents), torch.from_numpy(rows), vocabulary


def _draw_batch(latents: Tensor, tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Draw latents "batch 4 16 16" and captions "batch 32", a tenth of them empty."""
    rows = torch.randint(len(latents), (size,))
    kinds = torch.multinomial(torch.tensor(DETAIL_PROBABILITIES), size, replacement=True)
    assert tokens.shape[1] == len(DETAILS)
    chosen = tokens[rows, kinds]
    # a caption starts with the start token and ends in end tokens: these two make the empty one
    empty = chosen[:, -1:].repeat(1, chosen.shape[1])
    empty[:, 0] = chosen[:, 0]
    dropped = torch.rand(size, 1) < DROPPED
    return latents[rows], torch.where(dropped, empty, chosen)


def _loss(net: Denoiser, clean: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """Give the eps loss, weighted down where the signal is strong.

    Source: Hang et al. 2023 (arXiv:2303.09556), min-SNR with gamma 5; with a floor of 0.3.
    """
    size = len(clean)
    # one timestep from each of `size` equal ranges: less variance than independent draws
    timestep = ((torch.arange(size) + torch.rand(size)) * (1000 / size)).long().clamp(max=999)
    alpha = alphas[timestep].view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        eps = net(noisy, timestep.float(), tokens)
    snr = (alpha / (1 - alpha)).view(-1)
    weight = 0.3 + 0.7 * (5 / snr).clamp(max=1)
    return (weight * (eps.float() - noise).square().mean((1, 2, 3))).mean()


@torch.no_grad()
def _follow(average: dict[str, Tensor], net: Denoiser, decay: float) -> None:
    values = net.state_dict()
    names = [name for name, value in values.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in names], [values[n] for n in names], 1 - decay)


def _state(net, average, optimiser, budget: Budget, step: int, vocabulary: list[int]) -> dict:
    return {
        "net": net.state_dict(),
        "ema": average,
        "optimiser": optimiser.state_dict(),
        "spent": budget.spent,
        "step": step,
        "vocabulary": vocabulary,
    }
