"""StyleDiffusion: learned values of cross-attention that make guided sampling retrace a picture."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import PlanError
from .null_text import (
    EARLY_STOP_GROWTH,
    latent_loss,
    loss_gradient,
    loss_weight,
    optimise_step,
    rate_at,
)
from .steps import guide, step_euler

INNER_DECAY = 0.1
"""Inner steps fall by exp(-0.1) a step, as published, whatever the number of steps."""


class DenoiseValues(Protocol):
    """Conditional prediction under changed values, and a loss of its own per image, "batch".

    Differentiable with respect to the change, "batch 2 tokens dim".
    """

    def __call__(
        self, x: Tensor, sigma: Tensor, step: int, modulation: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class StyleState(NamedTuple):
    """After one step: its number (0 is the noisiest), the level reached, what came of it.

    x: "batch channels height width", the guided reconstruction. modulation: "batch 2 tokens dim",
    scale and shift of the values' input. losses: "inner batch"; NaN for images that had stopped.
    denoised: guided prediction.
    """

    step: int
    sigma: Tensor
    x: Tensor
    modulation: Tensor
    losses: Tensor
    denoised: Tensor


def optimise_values(
    latents: Tensor,
    sigmas: Tensor,
    parameters: Tensor,
    network: Callable[[Tensor], Tensor],
    denoise_uncond: Callable[[Tensor, Tensor, int], Tensor],
    denoise_cond: DenoiseValues,
    *,
    guidance_scale: float = 7.5,
    inner_steps: int = 100,
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    flow: bool = False,
    guided: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    differentiate: Callable[[Callable[[], Any]], Any] = lambda closure: closure(),
    loss_scale: float = 1.0,
) -> Iterator[StyleState]:
    """Yield a state a step, from noisy to clean, with the change of values found for that step.

    latents: "steps+1 batch channels height width" at `sigmas` "steps+1", clean to noisy.
    parameters: "batch parameters", where the noisiest step starts; each next step starts where
      one ended. network: parameters -> "batch 2 tokens dim".
    denoise_uncond is asked once a step without gradients; only the conditional row is ever
      differentiated, and only with respect to the network's output.
    inner_steps: at the noisiest step; later ones have ceil(inner_steps exp(-0.1 step)).
    guided, differentiate, loss_scale, learning_rate, early_stop: as in `null_text.optimise_null`.
    Source: Li et al. 2023 (arXiv:2303.15649), losses, schedules and warm start of the published
    code; the loss on the latent is on z = x / sqrt(1 + sigma^2).
    Raises: PlanError for settings that would do nothing, DivergenceError for NaN or Inf.
    """
    if inner_steps < 1 or learning_rate <= 0:
        raise PlanError(
            "StyleDiffusion needs at least one inner step and a positive learning rate, got "
            f"{inner_steps} and {learning_rate}; to skip it, use the trajectory as it is"
        )
    mix = guided or (lambda cond, uncond, x, sigma: guide(cond, uncond, guidance_scale))
    steps = len(sigmas) - 1
    x = latents[steps]
    for step in range(steps):
        sigma, sigma_next = sigmas[steps - step], sigmas[steps - step - 1]
        target = latents[steps - step - 1]
        weight = loss_weight(sigma_next, flow)
        with torch.no_grad():
            uncond = denoise_uncond(x, sigma, step)

        def measure(modulation, x=x, uncond=uncond, sigma=sigma, sigma_next=sigma_next,
                    target=target, weight=weight, step=step):
            cond, own = denoise_cond(x, sigma, step, modulation)
            stepped = step_euler(x, mix(cond, uncond, x, sigma), sigma, sigma_next)
            return latent_loss(stepped, target, weight) + own

        def evaluate(parameters, measure=measure):
            leaf = parameters.detach().clone().requires_grad_(True)
            modulation = network(leaf)
            losses, slope = differentiate(
                lambda: loss_gradient(measure, modulation, loss_scale)
            )
            return losses, torch.autograd.grad(modulation, leaf, slope.to(modulation))[0]

        parameters, losses = optimise_step(
            parameters,
            evaluate,
            inner_steps_at(inner_steps, step),
            rate_at(learning_rate, step, steps),
            early_stop + step * EARLY_STOP_GROWTH,
            step,
            "StyleDiffusion",
        )
        with torch.no_grad():
            modulation = network(parameters)
            cond, _ = denoise_cond(x, sigma, step, modulation)
            denoised = mix(cond, uncond, x, sigma)
            x = step_euler(x, denoised, sigma, sigma_next)
        yield StyleState(step, sigma_next, x, modulation, losses, denoised)


def inner_steps_at(inner_steps: int, step: int) -> int:
    """Return a step's number of inner steps: 100, 91, 82, ... 1 for the published 100."""
    return math.ceil(inner_steps * math.exp(-INNER_DECAY * step))


def inner_steps_in_all(inner_steps: int, steps: int) -> int:
    """Return the most inner steps that a whole run takes."""
    return sum(inner_steps_at(inner_steps, step) for step in range(steps))
