"""Noise levels: conversions between abar and sigma, and the grids on which inversions walk.

A grid here is increasing, clean to noisy, `[steps+1]`; samplers read it backwards.
"""

import torch
from torch import Tensor

from .errors import ScheduleError


def to_sigma(abar: Tensor) -> Tensor:
    """Convert cumulative alpha to the level of x = x0 + sigma eps: sqrt((1 - abar) / abar)."""
    return ((1 - abar) / abar).sqrt()


def to_abar(sigma: Tensor) -> Tensor:
    """Convert a noise level back to cumulative alpha: 1 / (1 + sigma^2)."""
    return 1 / (1 + sigma**2)


def scaled_linear_abar(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Return Stable Diffusion's cumulative alphas, float64 "steps" (roots of beta are linear)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def leading_timesteps(steps: int, train_steps: int = 1000, offset: int = 1) -> list[int]:
    """Return the published grid of labels, increasing: 1, 21, ..., 981 for 50 steps.

    Source: diffusers' DDIMScheduler with "leading" spacing; its StableDiffusionPipeline forces
    `offset` to 1, EDICT keeps 0 (algorithms 0.3).
    Raises: ScheduleError if steps is not in 1..train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise ScheduleError(f"steps must be between 1 and {train_steps}, got {steps}")
    stride = train_steps // steps
    return [min(k * stride + offset, train_steps - 1) for k in range(steps)]


def leading_sigmas(table: Tensor, steps: int, offset: int = 1) -> Tensor:
    """Return the published grid as noise levels, increasing, `[steps+1]`.

    table: "train_steps"; the model's own noise level for every training timestep, increasing.
    The clean latent stands at the table's first level (abar[0], "set_alpha_to_one False"), not
    at zero: the published inversions and samplers agree on that, so it cancels in round trips.
    Source: schedule of the published codes, algorithms 0.3.
    """
    labels = leading_timesteps(steps, len(table), offset)
    if labels[0] == 0:
        raise ScheduleError(
            f"{steps} steps with offset 0 put the first label on the clean level; use offset 1"
        )
    return torch.cat([table[:1], table[torch.tensor(labels)]])


def check_grid(sigmas: Tensor) -> Tensor:
    """Return `sigmas` as a float32 CPU grid, increasing from clean to noisy, or raise.

    Accepts a host SIGMAS (decreasing) as well and turns it round.
    Raises: ScheduleError for fewer than two levels, NaN, negative or repeated levels.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ScheduleError(
            f"a schedule needs one dimension and at least two levels, got {list(sigmas.shape)}"
        )
    grid = sigmas.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(grid).all()):
        raise ScheduleError("the schedule contains NaN or Inf; connect another scheduler")
    if bool(grid[0] > grid[-1]):
        grid = grid.flip(0)
    if bool((grid < 0).any()) or bool((grid.diff() <= 0).any()):
        raise ScheduleError(
            "noise levels must be at least 0 and strictly ordered; "
            f"got {[round(float(s), 4) for s in grid[:8]]}..."
        )
    return grid.clone()
