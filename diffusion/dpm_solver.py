"""DPM-Solver++ in data prediction, orders 1 and 2 (2M): sampling, and its inversion.

With lambda = log(alpha / sigma), alpha 1 for eps- and v-models in the host's coordinates and
1 - sigma for rectified flows, so one formula serves all families.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import DivergenceError, ScheduleError
from .inversion import InversionState, to_level
from .steps import Denoise, step_invert_ddim

VARIANTS = ("fine", "cheap")
METHODS = ("fixed-point", "forward-step")


def half_log_snr(sigma: float, flow: bool = False) -> float:
    """Return lambda = log(alpha / sigma); infinite at the ends."""
    alpha = 1 - sigma if flow else 1.0
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def coefficients(sigma: float, sigma_next: float, flow: bool = False) -> tuple[float, float]:
    """Return (ratio, weight) of x_next = ratio x + weight D, D the data prediction of the step.

    Source: Lu et al. 2022 (arXiv:2211.01095), Eq. 9 in these coordinates; weight is
    -alpha_next expm1(-h).
    """
    ratio = sigma_next / sigma
    if not flow:
        return ratio, 1 - ratio
    return ratio, (1 - sigma_next) - (1 - sigma) * ratio


def ratio_of_steps(noisier: float, sigma: float, cleaner: float, flow: bool = False) -> float:
    """Return r0 = (lambda_s - lambda_r) / (lambda_t - lambda_s) of three levels r, s, t."""
    middle = half_log_snr(sigma, flow)
    return (middle - half_log_snr(noisier, flow)) / (half_log_snr(cleaner, flow) - middle)


class DPMSolver:
    """Sampling steps of DPM-Solver++: order 1 (which is DDIM) or the two-step multistep 2M.

    The first step of a walk and the one to the clean end are of order 1.
    Source: Lu et al. 2022 (arXiv:2211.01095), Alg. 2 (2M), with order 1 at both ends as in Hong
    et al. 2024.
    Test: tests/diffusion/test_dpm_solver.py::test_sampling_has_its_order
    """

    def __init__(self, order: int) -> None:
        self.order = order

    def step(
        self,
        branches: Mapping[str, Tensor],
        denoise: Any,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return the stepped branches and their predictions; remembers the predictions."""
        denoised = denoise(branches, sigma)
        flow = memory.get("flow", False)
        before, level = memory.get("previous", ({}, 0.0))
        ratio, weight = coefficients(float(sigma), float(sigma_next), flow)
        last = memory["step"] == memory["steps"] - 1
        stepped = {}
        for name, data in denoised.items():
            if self.order == 2 and name in before and not last:
                r0 = ratio_of_steps(level, float(sigma), float(sigma_next), flow)
                data = data + (data - before[name]) / (2 * r0)
            stepped[name] = ratio * branches[name] + weight * data
        memory["previous"] = (denoised, float(sigma))
        return stepped, denoised


class Solve(NamedTuple):
    """How the inner solve of one step ended: x, RMS of what is left, model calls."""

    x: Tensor
    residual: float
    iterations: int


def invert_dpm_solver(
    denoise: Denoise,
    clean: Tensor,
    sigmas: Tensor,
    *,
    order: int = 2,
    variant: str = "fine",
    method: str = "fixed-point",
    iterations: int = 20,
    tolerance: float = 1e-5,
    substeps: int = 3,
    flow: bool = False,
) -> Iterator[InversionState]:
    """Yield every state from clean to noisy; each step solves for the latent that samples back.

    clean: "batch channels height width"; sigmas: "steps+1" increasing. order: 1 or 2 (2M).
    variant: of order 2: "fine" estimates the next noisier prediction by `substeps` naive steps
      per interval (Hong et al.), "cheap" by one (DiT4Edit). method: see `solve_step`.
    iterations: most model calls of a solve; tolerance: RMS at which it stops.
    Source: Hong et al. 2024 (arXiv:2311.18387), Alg. 1 and 2, with the grid's own neighbours
    instead of s - 1000 / N, and with evenly spaced lambdas for the substeps.
    """
    check_options(order, variant, method, iterations, tolerance, substeps)
    levels = [float(sigma) for sigma in sigmas]
    substeps = 1 if variant == "cheap" else substeps
    x = to_level(clean, sigmas[0], flow)
    yield InversionState(0, sigmas[0], x, 0.0)
    last = len(levels) - 1
    for index in range(1, len(levels)):
        sigma, sigma_next = sigmas[index - 1], sigmas[index]
        slope: Tensor | float = 0.0
        # order 1 at both ends, as sampling does
        if order == 1 or index == 1 or index == last:
            guess = step_invert_ddim(x, denoise, sigma, sigma_next, flow=flow)
        else:
            guess = walk_naively(x, denoise, sigma, sigma_next, substeps, flow)
            beyond = walk_naively(guess, denoise, sigma_next, sigmas[index + 1], substeps, flow)
            r0 = ratio_of_steps(levels[index + 1], levels[index], levels[index - 1], flow)
            change = denoise(guess, sigma_next) - denoise(beyond, sigmas[index + 1])
            slope = change / (2 * r0)
        solved = solve_step(
            x, guess, denoise, sigma, sigma_next, slope, method, iterations, tolerance, flow
        )
        x = solved.x
        yield InversionState(index, sigma_next, x, solved.residual, solved.iterations)


def walk_naively(
    x: Tensor, denoise: Denoise, sigma: Tensor, sigma_next: Tensor, substeps: int, flow: bool
) -> Tensor:
    """Carry x up from sigma to sigma_next in naive DDIM steps, evenly spaced in lambda."""
    low, high = half_log_snr(float(sigma), flow), half_log_snr(float(sigma_next), flow)
    levels = [sigma]
    for k in range(1, substeps):
        # an end of infinite lambda (a flow's pure noise) has no even spacing
        snr = low + (high - low) * k / substeps
        if math.isfinite(snr):
            level = 1 / (1 + math.exp(snr)) if flow else math.exp(-snr)
            levels.append(torch.as_tensor(level, dtype=sigma.dtype, device=sigma.device))
    levels.append(sigma_next)
    for start, end in pairwise(levels):
        x = step_invert_ddim(x, denoise, start, end, flow=flow)
    return x


def solve_step(
    x: Tensor,
    guess: Tensor,
    denoise: Denoise,
    sigma: Tensor,
    sigma_next: Tensor,
    slope: Tensor | float,
    method: str,
    iterations: int,
    tolerance: float,
    flow: bool = False,
) -> Solve:
    """Find the noisier latent y whose sampling step F(y) = ratio y + weight (m(y) + slope) is x.

    Iterates y <- y - rate (F(y) - x). "fixed-point" starts with rate 1 / ratio, "forward-step"
    with half a variance-preserving unit, ramped up over 20 iterations; both halve the rate where
    the residual grew, and both return the best y that was evaluated.
    The residual is the largest RMS of F(y) - x over the batch; 0.0 if nothing was evaluated.
    Source: Hong et al. 2024, Sec. 4.2 (forward step method), without its rates by timestep label.
    """
    ratio, weight = coefficients(float(sigma_next), float(sigma), flow)
    best, y, rate, count = Solve(guess, math.inf, 0), guess, 1 / ratio if ratio else 1.0, 0
    if method == "forward-step":
        units = 1.0 if flow else math.sqrt((1 + float(sigma_next) ** 2) / (1 + float(sigma) ** 2))
        rate = min(rate, 0.5 * units)
    for count in range(1, iterations + 1):
        error = ratio * y + weight * (denoise(y, sigma_next) + slope) - x
        residual = float(error.double().pow(2).flatten(1).mean(1).sqrt().max())
        grew = not residual < best.residual
        if grew and count == 1:
            raise DivergenceError(
                f"the first estimate at sigma {float(sigma_next):.4g} is not finite; the latent or "
                "its text holds numbers far outside what this model is made for"
            )
        if not grew:
            best, kept_error = Solve(y, residual, count), error
        if residual <= tolerance:
            break
        if grew:
            rate, y, error = rate / 2, best.x, kept_error
        ramp = min(1.0, count / 20) if method == "forward-step" else 1.0
        y = y - rate * ramp * error
    return Solve(best.x, best.residual if count else 0.0, count)


def check_options(
    order: int, variant: str, method: str, iterations: int, tolerance: float, substeps: int
) -> None:
    """Raise ScheduleError for options outside their range."""
    if order not in (1, 2):
        raise ScheduleError(f"order must be 1 or 2, got {order}")
    if variant not in VARIANTS:
        raise ScheduleError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if method not in METHODS:
        raise ScheduleError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if iterations < 0 or substeps < 1 or not tolerance >= 0:
        raise ScheduleError(
            "iterations and tolerance must be at least 0 and substeps at least 1, got "
            f"{iterations}, {tolerance} and {substeps}"
        )
