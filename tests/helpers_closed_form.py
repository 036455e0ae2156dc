"""A problem with a closed form: Gaussian data, whose denoiser and ODE paths are known exactly."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gaussian_denoise(std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the ideal denoiser of data N(0, std^2): D(x, sigma) = x std^2 / (std^2 + sigma^2)."""
    return lambda x, sigma: x * (std**2 / (std**2 + sigma**2))


def gaussian_path(x: Tensor, start: Tensor, end: Tensor, std: float) -> Tensor:
    """Return where the probability-flow ODE carries x from level start to level end."""
    return x * ((std**2 + end**2) / (std**2 + start**2)).sqrt()


def flow_denoise(std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the ideal x0-prediction of a rectified flow x = (1 - sigma) x0 + sigma n."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * ((1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2))

    return denoise


def flow_path(x: Tensor, start: Tensor, end: Tensor, std: float) -> Tensor:
    """Return where a rectified flow's ODE carries x from level start to level end."""
    def variance(sigma: Tensor) -> Tensor:
        return (1 - sigma) ** 2 * std**2 + sigma**2

    return x * (variance(end) / variance(start)).sqrt()


def geometric_grid(low: float, high: float, steps: int) -> Tensor:
    """Return "steps+1" levels, increasing, evenly spaced in log sigma, float64."""
    return torch.logspace(math.log10(low), math.log10(high), steps + 1, dtype=torch.float64)


def order_of(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Return the order of convergence: minus the slope of log error over log step count."""
    x = torch.tensor([math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


def latent(batch: int = 1, size: int = 4, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Return a small random latent from its own generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, size, size, generator=generator, dtype=torch.float64).to(dtype)


def maximum(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a.double() - b.double()).abs().max())
