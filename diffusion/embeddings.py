"""Arithmetic of text embeddings."""

import torch
from torch import Tensor

PARALLEL = 1e-6
"""Sines of angles below this count as zero: no single great circle runs through two points."""


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """Interpolate embeddings "batch tokens dim" on the great circle, each taken as one vector.

    Identical or opposite directions have no great circle; there the line between them is used
    (the published code divides by zero, for example when both prompts are empty).
    Source: Shoemake 1985; the vectors keep their own lengths' interpolation, as published.
    """
    a, b = start.flatten(1).double(), end.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle = cosine.arccos()[:, None]
    sine = angle.sin()
    line = torch.lerp(a, b, fraction)
    safe = sine.clamp_min(PARALLEL)
    circle = ((1 - fraction) * angle).sin() / safe * a + (fraction * angle).sin() / safe * b
    return torch.where(sine < PARALLEL, line, circle).to(start.dtype).reshape(start.shape)
