"""Null-text inversion: unconditional embeddings that make guided sampling retrace an inversion."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import DivergenceError, PlanError
from .steps import guide, step_euler

EARLY_STOP_GROWTH = 2e-5
"""Added to the early-stop threshold per step, as published."""


class DenoiseNull(Protocol):
    """Unconditional prediction under an embedding; differentiable with respect to it."""

    def __call__(self, x: Tensor, sigma: Tensor, step: int, embedding: Tensor) -> Tensor: ...


class NullState(NamedTuple):
    """After one step: its number (0 is the noisiest), the level reached, what came of it.

    x: "batch channels height width", the guided reconstruction. embedding: "batch tokens dim".
    losses: "inner batch"; NaN for images that had stopped. denoised: guided prediction.
    """

    step: int
    sigma: Tensor
    x: Tensor
    embedding: Tensor
    losses: Tensor
    denoised: Tensor


class Adam:
    """Adam (Kingma & Ba 2014, arXiv:1412.6980, Alg. 1) with torch's defaults; float32 state.

    Elementwise, so that the images of a batch are optimised as if each were alone.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.count = 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def update(self, value: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return the value after one step against the gradient."""
        if self.mean is None:
            self.mean, self.square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.count += 1
        self.mean = self.mean + (gradient - self.mean) * (1 - self.beta1)
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient**2
        size = learning_rate / (1 - self.beta1**self.count)
        scale = self.square.sqrt() / (1 - self.beta2**self.count) ** 0.5 + self.eps
        return value - size * self.mean / scale


def optimise_null(
    latents: Tensor,
    sigmas: Tensor,
    embedding: Tensor,
    denoise_cond: Callable[[Tensor, Tensor, int], Tensor],
    denoise_null: DenoiseNull,
    *,
    guidance_scale: float = 7.5,
    inner_steps: int = 10,
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    flow: bool = False,
    guided: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    differentiate: Callable[[Callable[[], Any]], Any] = lambda closure: closure(),
    loss_scale: float = 1.0,
) -> Iterator[NullState]:
    """Yield a state a step, from noisy to clean, with the embedding found for that step.

    latents: "steps+1 batch channels height width" at `sigmas` "steps+1", clean to noisy; embedding:
      "batch tokens dim", where the noisiest step starts; each next step starts where one ended.
    denoise_cond is asked once a step without gradients; only the unconditional row is ever
      differentiated, and only with respect to its embedding.
    learning_rate falls as `rate_at`; an image stops when its loss, after the update, was below
      early_stop + step 2e-5: images of a batch stop one by one, as if each were alone.
    guided: (cond, uncond, x, sigma) -> guided prediction, if not plain guidance.
    differentiate: runs a closure that differentiates (the host repeats it with less memory).
    loss_scale: factor on the loss during the backward pass, for networks that compute in fp16.
    Source: Mokady et al. 2022 (arXiv:2211.09794), Alg. 1 and Eq. 3; schedule and early stop of the
    published code; the loss is on z = x / sqrt(1 + sigma^2). Its last two-row call is one row here.
    Raises: PlanError for settings that would do nothing, DivergenceError for NaN or Inf.
    """
    if inner_steps < 1 or learning_rate <= 0:
        raise PlanError(
            "null-text optimisation needs at least one inner step and a positive learning rate, "
            f"got {inner_steps} and {learning_rate}; to skip it, use the trajectory as it is"
        )
    mix = guided or (lambda cond, uncond, x, sigma: guide(cond, uncond, guidance_scale))
    steps = len(sigmas) - 1
    x = latents[steps]
    for step in range(steps):
        sigma, sigma_next = sigmas[steps - step], sigmas[steps - step - 1]
        target = latents[steps - step - 1]
        weight = loss_weight(sigma_next, flow)
        with torch.no_grad():
            cond = denoise_cond(x, sigma, step)

        def measure(leaf, x=x, cond=cond, sigma=sigma, sigma_next=sigma_next, target=target,
                    weight=weight, step=step):
            guided = mix(cond, denoise_null(x, sigma, step, leaf), x, sigma)
            stepped = step_euler(x, guided, sigma, sigma_next)
            return latent_loss(stepped, target, weight)

        embedding, losses = optimise_step(
            embedding,
            lambda leaf, measure=measure: differentiate(lambda: loss_gradient(
                measure, leaf, loss_scale
            )),
            inner_steps,
            rate_at(learning_rate, step, steps),
            early_stop + step * EARLY_STOP_GROWTH,
            step,
        )
        with torch.no_grad():
            denoised = mix(cond, denoise_null(x, sigma, step, embedding), x, sigma)
            x = step_euler(x, denoised, sigma, sigma_next)
        yield NullState(step, sigma_next, x, embedding, losses, denoised)


def loss_weight(sigma: Tensor, flow: bool) -> float:
    """Return the factor that makes a squared distance of x at `sigma` one of z."""
    return 1.0 if flow else 1 / (1 + float(sigma) ** 2)


def latent_loss(stepped: Tensor, target: Tensor, weight: float) -> Tensor:
    """Return each image's mean squared distance from where its step should lead, "batch"."""
    return (stepped - target).float().square().flatten(1).mean(1) * weight


def rate_at(learning_rate: float, step: int, steps: int) -> float:
    """Return a step's learning rate: 1 - step/100 of the first, as published whatever the steps.

    Above 100 steps, where that would turn negative, the fall is stretched over all of them.
    """
    return learning_rate * (1 - step / max(100, steps))


def loss_gradient(
    measure: Callable[[Tensor], Tensor], embedding: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the losses "batch" at an embedding and their gradient, like embedding, float32.

    The sum over images is differentiated: rows do not mix, so each gets its own gradient. A scale
    that overflowed is taken back by factors of 16.
    """
    while True:
        leaf = embedding.detach().clone().requires_grad_(True)
        losses = measure(leaf)
        (gradient,) = torch.autograd.grad(losses.sum() * scale, leaf)
        gradient = gradient.float() / scale
        if scale <= 1 or bool(torch.isfinite(gradient).all()):
            return losses.detach(), gradient
        scale = max(1.0, scale / 16)


def optimise_step(
    embedding: Tensor,
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    inner_steps: int,
    learning_rate: float,
    threshold: float,
    step: int,
    name: str = "null-text",
) -> tuple[Tensor, Tensor]:
    """Return the embedding "batch ..." after one step's inner loop, its losses "inner batch"."""
    adam, losses = Adam(), []
    active = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    for _ in range(inner_steps):
        loss, gradient = evaluate(embedding)
        if not bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all()):
            raise DivergenceError(
                f"the {name} loss became NaN or Inf at step {step + 1}: lower the learning "
                "rate, or run the model in fp32 or bf16"
            )
        updated = adam.update(embedding, gradient, learning_rate)
        going = active.reshape(-1, *[1] * (embedding.ndim - 1))
        embedding = torch.where(going, updated, embedding)
        losses.append(torch.where(active, loss, torch.nan).cpu())
        active = active & (loss >= threshold)
        if not bool(active.any()):
            break
    return embedding.detach(), torch.stack(losses)
