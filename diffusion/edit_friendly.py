"""Edit-friendly DDPM inversion and LEDITS++'s: independent noisy versions, and the noises between.

The noises are kept; sampling replays them, so that the way back ends on the image exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .dpm_solver import ratio_of_steps
from .errors import ScheduleError
from .inversion import InversionState, to_level
from .steps import Denoise

KINDS = ("ddpm", "sde-dpmpp-2")


def ledits_timesteps(steps: int, skip: float, train_steps: int = 1000) -> list[int]:
    """Return LEDITS++'s labels, increasing: linear from 1 to (1 - skip) of the training range.

    Source: Brack et al. 2023 (arXiv:2311.16711), code; its skip shortens the range, not the
    number of steps.
    """
    last = train_steps * (1 - skip) - 1
    labels = torch.linspace(last, 1, steps).int().flip(0).tolist()
    if len(set(labels)) != steps or labels[0] < 1:
        raise ScheduleError(
            f"{steps} steps do not fit between timesteps 1 and {last:g}; use fewer steps or a "
            "smaller skip"
        )
    return labels


def draw_states(clean: Tensor, sigmas: Tensor, seed: int) -> list[Tensor]:
    """Return noisy versions of an image with independent noise, one a level above the first.

    Source: Huberman-Spiegelglas et al. 2023 (arXiv:2304.06140), Eq. 6.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        clean + sigma * torch.randn(clean.shape, generator=generator).to(clean)
        for sigma in sigmas[1:]
    ]


def posterior(
    x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float = 1.0
) -> tuple[Tensor, float]:
    """Return mean and standard deviation of a stochastic DDIM step down.

    Source: Song et al. 2020 (arXiv:2010.02502), Eqs. 12 and 16, for x = z / sqrt(abar); eta is
    squared in the direction term, which the published edit-friendly code forgets.
    """
    high, low = float(sigma) ** 2, float(sigma_next) ** 2
    variance = low / high * (high - low)
    keep = max(low - eta**2 * variance, 0.0) ** 0.5
    return denoised + keep * (x - denoised) / sigma, eta * variance**0.5


def posterior_2(
    x: Tensor, denoised: Tensor, before: Tensor, before_sigma: float, sigma: Tensor,
    sigma_next: Tensor,
) -> tuple[Tensor, float]:
    """Return mean and deviation of an SDE-DPM-Solver++ step of order 2 (eta 1).

    before: the prediction at before_sigma, the noisier level before this one.
    Source: Lu et al. 2022 (arXiv:2211.01095), SDE-DPM-Solver++(2M), as in LEDITS++.
    """
    mean, deviation = posterior(x, denoised, sigma, sigma_next)
    if float(sigma_next) == 0:
        return mean, deviation
    r0 = ratio_of_steps(before_sigma, float(sigma), float(sigma_next))
    weight = 1 - (float(sigma_next) / float(sigma)) ** 2
    return mean + weight * (denoised - before) / (2 * r0), deviation


class Posterior:
    """Mean and deviation of every step of one walk down, with the history order 2 needs."""

    def __init__(self, kind: str, eta: float) -> None:
        if kind not in KINDS:
            raise ScheduleError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not 0 < eta <= 1 or (kind != "ddpm" and eta != 1):
            raise ScheduleError(f"eta must be above 0 and at most 1 (exactly 1 for {KINDS[1]})")
        self.kind, self.eta = kind, eta
        self.before: tuple[Tensor, float] | None = None

    def __call__(
        self, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> tuple[Tensor, float]:
        """Return (mean, deviation); a deviation of 0 counts as 1, so that noises stay finite."""
        if self.kind == "ddpm" or self.before is None:
            mean, deviation = posterior(x, denoised, sigma, sigma_next, self.eta)
        else:
            mean, deviation = posterior_2(x, denoised, *self.before, sigma, sigma_next)
        self.before = (denoised, float(sigma))
        return mean, deviation or 1.0


def invert_edit_friendly(
    denoise: Denoise,
    clean: Tensor,
    sigmas: Tensor,
    *,
    states: Sequence[Tensor] | None = None,
    seed: int = 0,
    kind: str = "ddpm",
    eta: float = 1.0,
    keep_last_noise: bool = True,
    flow: bool = False,
) -> Iterator[InversionState]:
    """Yield every state from noisy to clean; those above the clean one keep their "noise".

    clean: "batch channels height width"; sigmas: "steps+1" increasing. states: noisy versions of
    clean at sigmas[1:] (None: drawn from `seed`). kind: "ddpm" (edit-friendly) or "sde-dpmpp-2"
    (LEDITS++). keep_last_noise: False zeroes the least noisy step's noise, as the edit-friendly
    code does; the image is then not reconstructed exactly.
    Source: Huberman-Spiegelglas et al. 2023 (arXiv:2304.06140), Alg. 1; Brack et al. 2023
    (arXiv:2311.16711), Eqs. 4-6.
    Test: tests/diffusion/test_edit_friendly.py::test_replaying_the_noises_returns_the_image
    """
    if flow:
        raise ScheduleError(
            "edit-friendly inversion needs a model that predicts noise; for rectified flows use "
            "Invert-DDIM"
        )
    step_down, steps = Posterior(kind, eta), len(sigmas) - 1
    given = draw_states(clean, sigmas, seed) if states is None else list(states)
    if len(given) != steps:
        raise ScheduleError(f"{steps} steps need {steps} noisy versions, got {len(given)}")
    levels = [to_level(clean, sigmas[0]), *given]
    x = levels[steps]
    for index in range(steps, 0, -1):
        sigma, sigma_next = sigmas[index], sigmas[index - 1]
        mean, deviation = step_down(x, denoise(x, sigma), sigma, sigma_next)
        noise = (levels[index - 1] - mean) / deviation
        last = index == 1 and not keep_last_noise
        kept = torch.zeros_like(noise) if last else noise
        yield InversionState(index, sigma, x, 0.0, kept=(("noise", kept),))
        x = mean + deviation * noise  # summed again, so that rounding does not pile up
    yield InversionState(0, sigmas[0], x, 0.0)


class Replay:
    """Stochastic sampling steps with a trajectory's noises, the same for both branches."""

    replays = True
    needs = ("noises",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(
        self,
        branches: Mapping[str, Tensor],
        denoise: Any,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return the stepped branches and their predictions."""
        denoised = denoise(branches, sigma)
        noise, stepped = memory["noises"][memory["step"]], {}
        walks = memory.setdefault("walks", {})
        for name, data in denoised.items():
            walk = walks.setdefault(name, Posterior(self.kind, float(memory.get("eta", 1.0))))
            mean, deviation = walk(branches[name], data, sigma, sigma_next)
            stepped[name] = mean + deviation * noise
        return stepped, denoised
