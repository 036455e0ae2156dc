"""Numbers for two IMAGEs and a MASK, as the Edit-Metrics node shows them."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import LatentError
from ..diffusion.pictures import size, to_batch
from . import metrics
from .metrics import Nearness
from .tables import decibel


class EditMetrics(NamedTuple):
    """Nearness, "batch", outside the mask, inside it and of the whole picture.

    published: outside and inside in the benchmark's convention, None without a mask.
    """

    outside: Nearness
    inside: Nearness | None
    whole: Nearness
    published: tuple[Nearness, Nearness] | None

    def report(self) -> str:
        """Write all means, one line a region."""
        lines = [line("whole picture", self.whole)]
        if self.inside is not None:
            lines += [line("outside the mask", self.outside), line("inside the mask", self.inside)]
            for name, part in zip(("outside", "inside"), self.published, strict=True):
                lines.append(line(f"{name}, published convention", part))
        return "\n".join(lines)


def compare_images(first: Tensor, second: Tensor, mask: Tensor | None = None) -> EditMetrics:
    """Compare two IMAGEs outside and inside a MASK; without one the whole picture is "outside".

    first, second: "batch height width channels" in [0, 1]; one picture is compared with all of the
    other batch. mask: "batch-or-1 height width", 1 where the edit may act; resized if need be.
    Raises: LatentError when sizes do not fit.
    """
    if first.shape[1:3] != second.shape[1:3]:
        raise LatentError(
            f"the pictures are {size(first)} and {size(second)}; scale one of them to the other's "
            "size first (an autoencoder may have cut the border)"
        )
    if min(first.shape[1:3]) < metrics.WINDOW:
        raise LatentError(
            f"SSIM needs pictures of at least {metrics.WINDOW} x {metrics.WINDOW} pixels, got "
            f"{size(first)}"
        )
    count = max(len(first), len(second))
    if not {len(first), len(second)} <= {1, count}:
        raise LatentError(f"one batch has {len(first)} images, the other {len(second)}")
    a, b = (to_batch(picture.clamp(0, 1), count, "cpu") for picture in (first, second))
    whole = metrics.masked(a, b)
    if mask is None:
        return EditMetrics(whole, None, whole, None)
    inside = fit(mask, a)
    if len(inside) not in (1, count):
        raise LatentError(f"the mask has {len(inside)} images, the pictures {count}")
    inside = inside.expand(count, -1, -1)
    return EditMetrics(
        metrics.masked(a, b, 1 - inside),
        metrics.masked(a, b, inside),
        whole,
        (metrics.blanked(a, b, 1 - inside), metrics.blanked(a, b, inside)),
    )


def fit(mask: Tensor, picture: Tensor) -> Tensor:
    """Return a MASK at the picture's size, "batch height width" in [0, 1]."""
    mask = mask.detach().to("cpu").float()
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.shape[1:] != picture.shape[2:]:
        mask = F.interpolate(mask[:, None], picture.shape[2:], mode="nearest-exact")[:, 0]
    return mask.clamp(0, 1)


def mean(values: Tensor) -> float:
    """Return the mean over a batch, leaving out what is not a number; nan if nothing is left."""
    return metrics.mean_of_finite(values.tolist())


def line(name: str, values: Nearness) -> str:
    """Write one region's means."""
    psnr = decibel(mean(values.psnr))
    unit = "" if psnr in ("–", "exact") else " dB"
    return (
        f"{name}: PSNR {psnr}{unit}, SSIM {mean(values.ssim):.4f}, MSE {mean(values.mse):.3g}"
    )
