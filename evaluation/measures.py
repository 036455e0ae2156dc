"""The metrics of one edited picture, by name: the published convention and a corrected one.

Names begin with `published_`, `corrected_`, or `exact_` (against the perfect result, where the data
has it). A metric that a case does not have is nan: what must stay, where all may change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import metrics
from .jobs import Job
from .scenes import check
from .scenes_bench import read_scenes
from .scores import is_right, to_pictures

PUBLISHED, CORRECTED, EXACT = "published", "corrected", "exact"
NEARNESS = ("psnr", "mse", "ssim")
PICTURE_GROUP = "pictures"

Measure = Callable[[Job, np.ndarray], Mapping[str, float]]


def measure_pictures(job: Job, edited: np.ndarray) -> dict[str, float]:
    """Compare an edited picture with the source where it must stay, and with the perfect result.

    edited: uint8 "height width 3", of the source's size.
    """
    source, picture = to_pictures([job.source]), to_pictures([edited])
    found = {f"{way}_{name}": math.nan for way in (PUBLISHED, CORRECTED) for name in NEARNESS}
    keep = keep_of(job)
    if keep is not None and keep.any():
        published = metrics.blanked(picture, source, keep)
        corrected = metrics.masked(picture, source, keep)
        for name in NEARNESS:
            found[f"{PUBLISHED}_{name}"] = float(getattr(published, name))
            found[f"{CORRECTED}_{name}"] = float(getattr(corrected, name))
    if job.exact is not None:
        exact = metrics.masked(picture, to_pictures([fit(job.exact, edited)]))
        found[f"{EXACT}_psnr"], found[f"{EXACT}_ssim"] = float(exact.psnr), float(exact.ssim)
    if "scenes" in job.entry:
        checked = check(edited.astype(np.float32) / 255, read_scenes(dict(job.entry))[1])
        found["right"] = float(is_right(checked, job.entry["attribute"]))
        found["all_right"] = float(checked.all)
    return found


def keep_of(job: Job) -> Tensor | None:
    """Return where a picture must stay as it is, "1 height width"; None if nothing says so."""
    return None if job.mask is None else torch.from_numpy(~job.mask)[None].float()


def fit(picture: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Bring a uint8 picture to another one's size: an autoencoder may have cut the border."""
    if picture.shape == like.shape:
        return picture
    size = (like.shape[1], like.shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
