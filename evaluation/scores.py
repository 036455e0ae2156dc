"""Scores of edited scenes: what is right by the checker, how near what must stay has stayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .scenes import CheckResult, EditCase, check
from .scenes.render import SHADE, coverage, pixel_centres
from .scenes.vocabulary import CANVAS, COLOURS


@dataclass(frozen=True)
class Score:
    """One edit of one case.

    right: the swapped attribute is the target's; all_right: so is everything a caption says.
    keep: PSNR in dB to the source where source and exact target are equal; keep_published: the
    same in the published convention; keep_ssim: SSIM there. exact: PSNR to the exact target.
    reconstruction: PSNR of the method's source branch to the source picture; latent: the same to
    the autoencoder's own picture of it, which sees what the autoencoder's error would hide.
    look: levels (RGB distance) between the edited object's colour and what the source's has, where
    the edit leaves colours alone; nan elsewhere.
    rows: row-forwards of inversion and edit; seconds: both together.
    """

    method: str
    case: int
    attribute: str
    right: bool
    all_right: bool
    keep: float
    keep_published: float
    keep_ssim: float
    exact: float
    reconstruction: float
    latent: float
    look: float
    rows: tuple[int, int]
    seconds: float


def score_batch(
    method: str,
    numbers: Sequence[int],
    cases: Sequence[EditCase],
    edited: Tensor,
    reconstructed: Tensor,
    round_trip: Tensor,
    rows: tuple[int, int],
    seconds: float,
) -> list[Score]:
    """Score the pictures a method made of a batch.

    edited, reconstructed, round_trip (the autoencoder's of the source): "batch height width 3" in
    [0, 1].
    """
    source, target = (
        to_pictures([getattr(case, name) for case in cases])
        for name in ("source_image", "target_image")
    )
    keep = torch.from_numpy(np.stack([case.keep_mask for case in cases])).float()
    picture, sampled, ideal = (
        tensor.movedim(-1, 1).clamp(0, 1) for tensor in (edited, reconstructed, round_trip)
    )
    stays = metrics.masked(picture, source, keep)
    published = metrics.blanked(picture, source, keep)
    exact = metrics.psnr(picture, target)
    reconstruction, latent = metrics.psnr(sampled, source), metrics.psnr(sampled, ideal)
    scores = []
    for i, (number, case) in enumerate(zip(numbers, cases, strict=True)):
        checked = check(edited[i].numpy(), case.target)
        scores.append(
            Score(
                method=method,
                case=number,
                attribute=case.attribute,
                right=is_right(checked, case.attribute),
                all_right=checked.all,
                keep=float(stays.psnr[i]),
                keep_published=float(published.psnr[i]),
                keep_ssim=float(stays.ssim[i]),
                exact=float(exact[i]),
                reconstruction=float(reconstruction[i]),
                latent=float(latent[i]),
                look=look_error(edited[i].numpy(), case),
                rows=rows,
                seconds=seconds,
            )
        )
    return scores


def look_error(picture: np.ndarray, case: EditCase) -> float:
    """Return how far the object's colour is from the source's, in levels; see `Score`.

    picture: "height width 3" in [0, 1]. Read inside the object of the exact target.
    """
    if case.attribute not in ("shape", "position"):
        return float("nan")
    before, after = (scene.objects[case.object_index] for scene in (case.source, case.target))
    ys, xs = pixel_centres(picture.shape[0])
    place = (after.x, after.y, 0.85 * after.radius)  # the border is mixed with the background
    inside = coverage(after.shape, xs, ys, place, CANVAS / picture.shape[0]) > 0.5
    wanted = np.array(COLOURS[before.colour], np.float32) + SHADE * before.shade
    return float(np.linalg.norm(np.median(picture[inside], axis=0) * 255 - wanted))


def is_right(checked: CheckResult, attribute: str) -> bool:
    """Tell whether the edited attribute is the target's.

    attribute: colour, shape, background or pattern; position (the object is at its new place,
    otherwise as it was); add or delete (the objects are those of the target, and no more).
    """
    if attribute == "position":
        return checked.located and checked.colour and checked.shape
    if attribute in ("add", "delete"):
        return checked.count and checked.colour and checked.shape
    return getattr(checked, attribute)


def to_pictures(images: Sequence[np.ndarray]) -> Tensor:
    """Stack uint8 pictures to "batch 3 height width" in [0, 1]."""
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255


MEANS = (
    "keep", "keep_published", "keep_ssim", "exact", "reconstruction", "latent", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Means of a method's scores; right: share by attribute; look: of edits that are right."""

    method: str
    count: int
    right: dict[str, float]
    all_right: float
    keep: float
    keep_published: float
    keep_ssim: float
    exact: float
    reconstruction: float
    latent: float
    look: float
    rows: tuple[int, int]
    seconds: float


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """Average the scores of every method, in the order in which the methods first appear."""
    return [
        _summary(method, [score for score in scores if score.method == method])
        for method in dict.fromkeys(score.method for score in scores)
    ]


def _summary(method: str, scores: list[Score]) -> Summary:
    attributes = dict.fromkeys(score.attribute for score in sorted(scores, key=lambda s: s.case))
    right = {
        name: float(np.mean([score.right for score in scores if score.attribute == name]))
        for name in attributes
    }
    means = {
        name: metrics.mean_of_finite([getattr(score, name) for score in scores])
        for name in MEANS
    }
    inversion, edit = (round(float(np.mean([score.rows[i] for score in scores]))) for i in (0, 1))
    return Summary(
        method=method,
        count=len(scores),
        right=right,
        all_right=float(np.mean([score.all_right for score in scores])),
        look=metrics.mean_of_finite([score.look for score in scores if score.right]),
        rows=(inversion, edit),
        **means,
    )
