"""DDIM inversion of a clean latent: the loop, and nothing else. Other inversions have own files."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ScheduleError
from .steps import REFINEMENTS, Denoise, rescale, step_invert_ddim


class InversionState(NamedTuple):
    """One state on the way up: level index (0 is clean), its noise level, x, last residual.

    iterations: of the step's inner solve. kept: named tensors that belong to this level and that
    the trajectory's solver needs beside x.
    """

    index: int
    sigma: Tensor
    x: Tensor
    residual: float
    iterations: int = 0
    kept: tuple[tuple[str, Tensor], ...] = ()


def to_level(clean: Tensor, sigma: Tensor, flow: bool = False) -> Tensor:
    """Place a clean latent at the grid's first level without adding noise.

    The published grid starts at abar[0], whose sigma is not 0: the latent z counts as the
    variance-preserving state there, so x = z sqrt(1 + sigma^2).
    """
    return clean if flow else rescale(clean, torch.zeros_like(sigma), sigma)


def from_level(x: Tensor, sigma: Tensor, flow: bool = False) -> Tensor:
    """Undo `to_level`: the clean latent that stands at the grid's first level."""
    return x if flow else rescale(x, sigma, torch.zeros_like(sigma))


def invert_ddim(
    denoise: Denoise,
    clean: Tensor,
    sigmas: Tensor,
    *,
    evaluate_at: str = "next",
    refine: int = 0,
    refine_method: str = "fixed-point",
    flow: bool = False,
) -> Iterator[InversionState]:
    """Yield every state from clean to noisy.

    clean: "batch channels height width"; sigmas: "steps+1" increasing, on clean's device.
    refine: fixed-point iterations per step on top of the Euler step (0 is plain DDIM inversion);
      with many of them the sampling steps lead back exactly.
    refine_method: "fixed-point" or "renoise" (averages predictions; see `steps`).
    Test: tests/diffusion/test_inversion.py
    """
    if refine_method not in REFINEMENTS:
        raise ScheduleError(
            f"refine_method must be one of {', '.join(REFINEMENTS)}, got {refine_method!r}"
        )
    refine_step = REFINEMENTS[refine_method]
    x = to_level(clean, sigmas[0], flow)
    yield InversionState(0, sigmas[0], x, 0.0)
    for index in range(1, len(sigmas)):
        sigma, sigma_next = sigmas[index - 1], sigmas[index]
        # the derivative does not exist at sigma 0: the first step asks at the next level
        rule = "next" if float(sigma) == 0 else evaluate_at
        x_next = step_invert_ddim(x, denoise, sigma, sigma_next, evaluate_at=rule, flow=flow)
        x_next, residual = refine_step(x, x_next, denoise, sigma, sigma_next, refine)
        x = x_next
        yield InversionState(index, sigma_next, x, residual, refine)
