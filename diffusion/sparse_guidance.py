"""Masks of LEDITS++: guidance kept only where it is strong and where its words are looked at."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .proximal import interpolated_quantile


def above_quantile(values: Tensor, quantile: float) -> Tensor:
    """Return 1 where "batch 1 height width" values reach their image's quantile, else 0."""
    threshold = interpolated_quantile(values.flatten(1).float(), quantile)
    return (values >= threshold[:, None, None, None]).to(values.dtype)


def noise_mask(delta: Tensor, quantile: float) -> Tensor:
    """Return M2 of a guidance difference "batch channels height width": "batch 1 height width".

    Source: Brack et al. 2023 (LEDITS++, arXiv:2311.16711), Eq. 10: quantile of |delta| summed
    over channels.
    """
    return above_quantile(delta.abs().sum(1, keepdim=True), quantile)


def attention_mask(maps: Tensor, quantile: float, size: tuple[int, int]) -> Tensor:
    """Return M1 of the edit words' summed map "batch 1 rows columns": "batch 1 height width".

    The map is smoothed 3 x 3, thresholded at its quantile, and enlarged to `size` by nearest
    neighbours.
    Source: Brack et al. 2023 (LEDITS++, arXiv:2311.16711), Eq. 9, with its code's kernel: weights
    exp(-(d / (2 * 0.5))^2), which is wider than a Gaussian of 0.5.
    """
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=maps.dtype, device=maps.device))
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum())[None, None]
    mode = "reflect" if min(maps.shape[2:]) > 1 else "replicate"
    smooth = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode=mode), kernel)
    return F.interpolate(above_quantile(smooth, quantile), size=size)
