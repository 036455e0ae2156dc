"""Regularised noise of pix2pix-zero: predictions pulled towards white, unit-variance noise.

The losses act on small tensors by autograd of their own, also where the host forbids gradients.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ScheduleError
from .steps import Denoise

Shifts = Callable[[int], int]
"""size -> how far to roll along an axis of that size."""

VARIANTS = ("fixed", "published")
SMALLEST = 8
"""Side of the coarsest level of the pyramid."""


def random_shifts(seed: int, variant: str = "fixed") -> Shifts:
    """Return shifts drawn from a generator of their own.

    "fixed" draws from 1 to half the size; "published" may draw 0, which compares the noise with
    itself and so penalises its variance.
    """
    generator = torch.Generator().manual_seed(seed)
    least = 0 if variant == "published" else 1

    def shift(size: int) -> int:
        return int(torch.randint(least, max(size // 2, least + 1), (), generator=generator))

    return shift


def auto_correlation(eps: Tensor, shifts: Shifts, variant: str = "fixed") -> Tensor:
    """Return the loss "" of correlations between a noise and its shifted self, over a pyramid.

    eps: "batch channels height width"; summed over images, channels, levels and both axes.
    "fixed" doubles after each pooling, so that white noise keeps unit variance, as the paper
    says; "published" does not, and uses one shift for both axes.
    Source: Parmar et al. 2023 (arXiv:2302.03027), Eq. 3.
    """
    loss = eps.new_zeros(())
    for channel in eps.flatten(0, 1):
        level = channel[None, None]
        while True:
            down = shifts(level.shape[2])
            right = down if variant == "published" else shifts(level.shape[3])
            loss = loss + (level * level.roll(down, 2)).mean() ** 2
            loss = loss + (level * level.roll(right, 3)).mean() ** 2
            if min(level.shape[2:]) <= SMALLEST:
                break
            level = F.avg_pool2d(level, 2) * (1 if variant == "published" else 2)
    return loss


def kl_divergence(eps: Tensor) -> Tensor:
    """Return the loss "" var + mean^2 - 1 - log(var), summed over images.

    eps: "batch channels height width". Twice the divergence of N(mean, var) from N(0, 1).
    Source: Parmar et al. 2023 (arXiv:2302.03027), Sec. 3.2, by moments as in its code.
    """
    flat = eps.flatten(1)
    var = flat.var(1)
    return (var + flat.mean(1) ** 2 - 1 - (var + 1e-7).log()).sum()


def gradient(loss: Callable[[Tensor], Tensor], eps: Tensor) -> Tensor:
    """Return d loss / d eps, also under the host's inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = eps.detach().clone().requires_grad_(True)
        return torch.autograd.grad(loss(leaf), leaf)[0]


def regularise(
    eps: Tensor,
    shifts: Shifts,
    variant: str = "fixed",
    *,
    rounds: int = 5,
    rolls: int = 5,
    weight_correlation: float = 20.0,
    weight_kl: float = 20.0,
) -> Tensor:
    """Return a noise prediction after gradient steps on both losses.

    "fixed" also bounds each step (see `bounded`): on doubled levels the published weights are
    unstable for a noise whose mean is off.
    Source: Parmar et al. 2023 (arXiv:2302.03027), Alg. 1 and the settings of its code.
    Test: tests/diffusion/test_regularise.py
    """
    for _ in range(rounds):
        for _ in range(rolls):
            slope = gradient(lambda e: auto_correlation(e, shifts, variant), eps)
            eps = eps - bounded(weight_correlation / rolls * slope, eps, variant)
        eps = eps - bounded(weight_kl * gradient(kl_divergence, eps), eps, variant)
    return eps


def bounded(change: Tensor, eps: Tensor, variant: str) -> Tensor:
    """Return a step, in the fixed variant no larger than a tenth of the noise's RMS per image."""
    if variant == "published":
        return change
    axes = tuple(range(1, eps.ndim))
    most = 0.1 * eps.pow(2).mean(axes, keepdim=True).sqrt()
    size = change.pow(2).mean(axes, keepdim=True).sqrt()
    return change * (most / size.clamp_min(1e-12)).clamp_max(1.0)


def regularised(
    denoise: Denoise, shifts: Shifts, variant: str = "fixed", flow: bool = False
) -> Denoise:
    """Return a denoiser whose noise prediction is regularised.

    Raises: ScheduleError for a rectified flow, whose prediction is no noise, and for an unknown
    variant.
    """
    if flow:
        raise ScheduleError(
            "regularised inversion shapes a predicted noise, which rectified-flow models do not "
            "have; set regularise to 'off'"
        )
    if variant not in VARIANTS:
        raise ScheduleError(f"regularise must be one of {', '.join(VARIANTS)}, got {variant!r}")

    def calm(x: Tensor, sigma: Tensor) -> Tensor:
        eps = (x - denoise(x, sigma)) / sigma
        return x - sigma * regularise(eps, shifts, variant)

    return calm
