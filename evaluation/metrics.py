"""How near two pictures are: MSE, PSNR and SSIM, over the whole picture or a part of it.

A part is measured in one of two ways. The published benchmarks blank the rest of both pictures
and average over all pixels, which flatters small parts (`blanked`); ours averages over the part's
own pixels only (`masked`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, WINDOW_SIGMA = 11, 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # K1, K2 squared, for pictures in [0, 1]


class Nearness(NamedTuple):
    """MSE (pictures in [0, 1]), PSNR in dB and SSIM, each "batch"; nan over an empty part."""

    mse: Tensor
    psnr: Tensor
    ssim: Tensor


def masked(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Nearness:
    """Compare pictures over the pixels that a mask keeps; over all of them without a mask.

    first, second: "batch channels height width" in [0, 1].
    mask: "batch-or-1 height width", 1 where pixels count; soft masks are weights.
    """
    error = mse(first, second, mask)
    return Nearness(error, psnr_of(error), ssim(first, second, mask))


def blanked(first: Tensor, second: Tensor, mask: Tensor) -> Nearness:
    """Compare the pictures times the mask over all pixels: the published convention.

    Blank pixels count as perfect, so a part of share f gains -10 log10(f) dB of PSNR.
    Source: Ju et al. 2023 (arXiv:2310.01506), PnPInversion evaluation; nothing changed.
    """
    part = mask[:, None].to(first)
    result = masked(first * part, second * part)
    empty = (mask.sum((-2, -1)) == 0).expand(len(first))
    return Nearness(*(torch.where(empty, torch.nan, values) for values in result))


def mse(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the pixels that count, "batch"; shapes as `masked`."""
    check_pictures(first, second, mask)
    squared = (first - second).square().mean(1)  # [batch height width]
    if mask is None:
        return squared.mean((1, 2))
    weight = mask.to(squared)
    return (squared * weight).sum((1, 2)) / weight.sum((1, 2))  # 0 / 0 is nan: nothing counts


def psnr_of(error: Tensor) -> Tensor:
    """Return the PSNR in dB of a mean squared error of pictures in [0, 1]; inf for 0."""
    return -10 * error.log10()


def psnr(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, "batch"; shapes as for `masked`."""
    return psnr_of(mse(first, second, mask))


def ssim(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the structural similarity, "batch": the mean over all windows that lie inside.

    With a mask each window sees only the pixels that count (its weights are renormalised), and
    the mean is over windows whose middle counts; a mask of ones gives the plain value.
    Source: Wang et al. 2004, Eq. 13, Gaussian windows of 11 x 11, sigma 1.5; the mask is ours.
    Raises: ValueError for pictures smaller than a window.
    """
    check_pictures(first, second, mask)
    first, second = first.double(), second.double()  # a variance is a difference of near equals
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, got "
            f"{first.shape[-2]} x {first.shape[-1]}"
        )
    batch, channels, height, width = first.shape
    weight = torch.ones(1, 1, height, width) if mask is None else mask[:, None]
    weight = weight.to(first).expand(batch, 1, height, width)
    moments = torch.cat([first, second, first * first, second * second, first * second], 1)
    total = blur(weight)  # [batch 1 h-10 w-10]
    means = blur(moments * weight) / total.clamp_min(1e-12)
    mean_a, mean_b, square_a, square_b, product = means.split(channels, 1)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + LUMINANCE) * (2 * covariance + CONTRAST)) / (
        (mean_a**2 + mean_b**2 + LUMINANCE) * (variance_a + variance_b + CONTRAST)
    )
    edge = WINDOW // 2
    middle = weight[..., edge : height - edge, edge : width - edge]  # [batch 1 h-10 w-10]
    counted = middle.sum((1, 2, 3)) * channels
    return ((similarity * middle).sum((1, 2, 3)) / counted).float()


def blur(pictures: Tensor) -> Tensor:
    """Average over Gaussian windows that lie inside, "batch channels h w" to "... h-10 w-10"."""
    offsets = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    line = line / line.sum()
    batch, channels, height, width = pictures.shape
    flat = pictures.reshape(batch * channels, 1, height, width)
    flat = F.conv2d(F.conv2d(flat, line[None, None, :, None]), line[None, None, None, :])
    return flat.reshape(batch, channels, *flat.shape[-2:])


def mean_of_finite(values: list[float]) -> float:
    """Return the mean of the values that are numbers (nan is left out); nan if there is none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def check_pictures(first: Tensor, second: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless pictures and mask fit together."""
    if first.ndim != 4 or first.shape != second.shape:
        raise ValueError(
            "expected two pictures [batch channels height width] of one shape, got "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    if mask is None:
        return
    if mask.ndim != 3 or mask.shape[1:] != first.shape[2:] or len(mask) not in (1, len(first)):
        raise ValueError(
            f"expected a mask [1 or {len(first)}, {first.shape[2]}, {first.shape[3]}], got "
            f"{list(mask.shape)}"
        )
