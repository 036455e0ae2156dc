"""Paste-back: the photo's own pixels wherever an edit equals the reconstruction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LatentError, PlanError
from .pictures import size, to_batch

TOLERANCE = 16.0
FEATHER = 0
RAMP = 3.0
"""The edit counts in full from this multiple of the tolerance on."""
LEVELS = 255
MOST_CUT = 64
"""Pixels that an autoencoder may have cut off a side; its factor is less than that."""


def paste_back(
    edited: Tensor,
    source: Tensor,
    image: Tensor,
    mask: Tensor | None = None,
    *,
    tolerance: float = TOLERANCE,
    feather: int = FEATHER,
) -> tuple[Tensor, Tensor]:
    """Return the edit in the photo, and where it is the edit's.

    An edit and the reconstruction of its source came through the same autoencoder, so what that
    loses of the photo is the same in both: where they agree, nothing was edited, and the photo
    itself can stand there. No paper's. With a source branch that is not
    pinned, what the edit drifts like its source counts as agreement too.

    edited, source: decoded edit and decoded source branch, "batch height width channels" in [0, 1].
    image: the photo, one or as many; up to an autoencoder's factor larger, from whose middle the
    others were cut. mask: "batch height width", 0 where the photo must stay, of the photo's size or
    else stretched over the edit's; None for the edit anywhere.
    tolerance: levels of 255 by which the most different channel may differ and still be the
    photo's; from three times as much on it is the edit's, in between they mix. feather: pixels to
    each side over which differences are averaged first.
    Returns: "batch height width 3" of the photo's size, and "batch height width" in [0, 1].
    Raises: LatentError when sizes do not fit; PlanError for settings out of range.
    """
    if not 0 <= tolerance <= LEVELS or feather < 0:
        raise PlanError(
            f"the tolerance must be 0 to {LEVELS} levels and feather 0 pixels or more, got "
            f"{tolerance:g} and {feather}"
        )
    place = find_place(edited, source, image)
    count = max(len(edited), len(source), len(image))
    for name, picture in (("photo", image), ("edit", edited), ("reconstruction", source)):
        if len(picture) not in (1, count):
            raise LatentError(f"the {name} is a batch of {len(picture)}, another one of {count}")
    photo, after, before = (
        to_batch(picture, count, edited.device) for picture in (image, edited, source)
    )
    changed = ramp(difference(after, before, feather), tolerance / LEVELS)
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        mask = mask[(..., *place)] if mask.shape[1:] == image.shape[1:3] else mask
        changed = changed * _fit(mask, after, count)
    result, where = photo.clone(), photo.new_zeros(photo[:, :1].shape)
    part = (..., *place)
    result[part] = torch.lerp(photo[part], after, changed)
    where[part] = changed
    return result.movedim(1, -1), where[:, 0]


def find_place(edited: Tensor, source: Tensor, image: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the photo that the edit shows.

    Raises: LatentError when the edit was not cut from the middle of the photo.
    """
    if edited.shape[1:3] != source.shape[1:3]:
        raise LatentError(
            f"the edit is {size(edited)} and the reconstruction {size(source)} pixels; decode both "
            "outputs of one Edit-Sampler with the same VAE"
        )
    cut = [whole - part for whole, part in zip(image.shape[1:3], edited.shape[1:3], strict=True)]
    if not all(0 <= rest < MOST_CUT for rest in cut):
        raise LatentError(
            f"the photo is {size(image)} and the edit {size(edited)} pixels; give the picture that "
            "went into VAE Encode, or scale the photo to the edit's size"
        )
    rows, columns = (
        slice(rest // 2, rest // 2 + part)
        for rest, part in zip(cut, edited.shape[1:3], strict=True)
    )
    return rows, columns


def difference(after: Tensor, before: Tensor, feather: int) -> Tensor:
    """Return the greatest difference of any channel, "batch 1 height width", averaged around."""
    apart = (after - before).abs().amax(1, keepdim=True)
    if feather == 0:
        return apart
    return F.avg_pool2d(
        apart, 2 * feather + 1, stride=1, padding=feather, count_include_pad=False
    )


def ramp(apart: Tensor, tolerance: float) -> Tensor:
    """Return 0 up to the tolerance, 1 from `RAMP` times as much on, straight in between."""
    if tolerance == 0:
        return (apart > 0).to(apart.dtype)
    return ((apart - tolerance) / ((RAMP - 1) * tolerance)).clamp(0, 1)


def _fit(mask: Tensor, picture: Tensor, count: int) -> Tensor:
    """Return a MASK as "count-or-1 1 height width" in [0, 1], of the picture's size."""
    mask = mask.to(picture.device, torch.float32)[:, None]
    if len(mask) not in (1, count):
        raise LatentError(f"the mask has {len(mask)} images, the pictures {count}")
    if mask.shape[2:] != picture.shape[2:]:
        mask = F.interpolate(mask, picture.shape[2:], mode="bilinear")
    return mask.clamp(0, 1)
