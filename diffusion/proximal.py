"""Proximal guidance: thresholds on the guidance difference, and the pull back to the inversion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PlanError

MODES = ("soft", "hard", "published-l0", "published-l1")
"""published-l0 is the reference's default and equals soft thresholding, only its mask differs."""


def shrink(delta: Tensor, threshold: Tensor, mode: str) -> Tensor:
    """Return the guidance difference after the proximal step.

    soft: sign(d) max(|d| - t, 0), the proximal map of an l1 penalty. hard: d where |d| > t, that of
    l0. published-l1 is the reference's "l1": its second shrinking acts on the result of the first,
    so that values between -2t and -t change sign.
    Source: Han et al. 2023 (ProxEdit, arXiv:2306.05414), Sec. 3.2; algorithms 3.2 for the code.
    """
    if mode == "hard":
        return torch.where(delta.abs() > threshold, delta, torch.zeros_like(delta))
    if mode not in MODES:
        raise PlanError(f"unknown proximal mode {mode!r}; choose one of {', '.join(MODES)}")
    soft = delta - delta.clamp(-threshold, threshold)
    if mode == "published-l1":
        soft = torch.where(soft > 0, soft - threshold, soft)
        soft = torch.where(soft < 0, soft + threshold, soft)
    return soft


def quantile_threshold(delta: Tensor, quantile: float, silent: int = 0) -> Tensor:
    """Return the quantile of |delta| per image, "batch 1 1 1".

    delta: "batch rows channels height width", the rows that count together. silent: further rows
    of zeros that count as well: the published quantile is over source and target, and under
    negative-prompt inversion the source's difference is exactly zero.
    """
    flat = delta.abs().flatten(1).float()
    if silent:
        zeros = flat.new_zeros(len(flat), silent * delta[0, 0].numel())
        flat = torch.cat([flat, zeros], dim=1)
    value = interpolated_quantile(flat, quantile)
    return value[:, None, None, None].to(delta.dtype)


def interpolated_quantile(rows: Tensor, quantile: float) -> Tensor:
    """Return each row's linearly interpolated quantile (torch.quantile without its size limit)."""
    place = quantile * (rows.shape[1] - 1)
    low = int(place)
    ordered = rows.sort(dim=1).values
    upper = ordered[:, min(low + 1, rows.shape[1] - 1)]
    return torch.lerp(ordered[:, low], upper, place - low)


def edit_mask(
    delta: Tensor, shrunk: Tensor, threshold: Tensor, mode: str, radius: int
) -> Tensor:
    """Return where guidance is strong, 1 or 0 per element, grown by `radius` latent pixels.

    The published masks test the difference after shrinking, which asks for twice the threshold;
    ours test it before.
    """
    tested = shrunk if mode.startswith("published") else delta
    mask = (tested.abs() > threshold).to(delta.dtype)
    return dilate(mask, radius)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow a mask "batch channels height width" by a square of side 2 radius + 1."""
    if radius <= 0:
        return mask
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def pull(x: Tensor, anchor: Tensor, mask: Tensor, rate: float) -> Tensor:
    """Return x moved towards the inversion's state outside the mask: the inversion guidance.

    Source: algorithms 3.2; z - rate (z - z*) (1 - mask), at the level the step arrived at.
    """
    return x - rate * (x - anchor) * (1 - mask)
