"""Single steps of the probability-flow ODE, in either direction. One formula a function.

Coordinates are the host's: x = x0 + sigma eps for eps- and v-models, and
x = (1 - sigma) x0 + sigma n for rectified flows; in both dx/dsigma = (x - denoised) / sigma.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import ScheduleError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> denoised; x "batch channels height width", sigma ""."""


def to_d(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return the derivative dx/dsigma: eps for eps- and v-models, velocity for rectified flows.

    Raises: ScheduleError if sigma is 0 (the derivative is undefined there).
    """
    if float(sigma) == 0:
        raise ScheduleError("the derivative is undefined at sigma 0; evaluate at the next level")
    return (x - denoised) / sigma


def step_euler(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Advance x along the probability-flow ODE from sigma to sigma_next (either direction).

    For eps- and v-models this is DDIM with eta 0.
    Source: Karras et al. 2022 (arXiv:2206.00364), Eqs. 1 and 3 with sigma(t) = t; Alg. 1 without
    the correction. Song et al. 2020 (arXiv:2010.02502), Eq. 12 with sigma_t = 0.
    """
    return x + (sigma_next - sigma) * to_d(x, denoised, sigma)


def rescale(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Reinterpret x at another level with the variance-preserving latent unchanged.

    z = x / sqrt(1 + sigma^2) is what a diffusers network sees; the published inversions feed the
    z of one level under the label of the next.
    """
    return x * ((1 + sigma_next**2) / (1 + sigma**2)).sqrt()


def step_invert_ddim(
    x: Tensor,
    denoise: Denoise,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    evaluate_at: str = "next",
    flow: bool = False,
) -> Tensor:
    """Advance x from sigma to the noisier sigma_next: one step of DDIM inversion.

    evaluate_at: "next" feeds the latent of this level under the label of the next one (the
      convention of null-text inversion, Prompt-to-Prompt, MasaCtrl and Direct Inversion);
      "current" is the plain Euler step, evaluated where x is (needs sigma > 0).
    flow: the model is a rectified flow; "next" then evaluates x as it is at the next level.
    Source: Mokady et al. 2022 (arXiv:2211.09794), Sec. 3.1; Ju et al. 2023 (arXiv:2310.01506),
    Eq. 3, written for x = z / sqrt(abar).
    """
    if evaluate_at == "current":
        return step_euler(x, denoise(x, sigma), sigma, sigma_next)
    if evaluate_at != "next":
        raise ScheduleError(f"evaluate_at must be 'next' or 'current', got {evaluate_at!r}")
    x_label = x if flow else rescale(x, sigma, sigma_next)
    eps = to_d(x_label, denoise(x_label, sigma_next), sigma_next)
    return x + (sigma_next - sigma) * eps


def refine_fixed_point(
    x: Tensor,
    x_next: Tensor,
    denoise: Denoise,
    sigma: Tensor,
    sigma_next: Tensor,
    iterations: int,
) -> tuple[Tensor, float]:
    """Improve x_next so that the sampling step from it lands on x; return it and the residual.

    Solves x = x_next + (sigma - sigma_next) d(x_next, sigma_next) by fixed-point iteration.
    The residual is the RMS of the last update (0.0 for no iterations).
    Source: Pan et al. 2023 (AIDI, arXiv:2309.04907), Alg. 1 without blended guidance.
    """
    residual = 0.0
    for _ in range(iterations):
        d = to_d(x_next, denoise(x_next, sigma_next), sigma_next)
        updated = x + (sigma_next - sigma) * d
        residual = float((updated - x_next).double().pow(2).mean().sqrt())
        x_next = updated
    return x_next, residual


def refine_renoise(
    x: Tensor,
    x_next: Tensor,
    denoise: Denoise,
    sigma: Tensor,
    sigma_next: Tensor,
    iterations: int,
) -> tuple[Tensor, float]:
    """Improve x_next as `refine_fixed_point`, then step with the mean of the later predictions.

    Averaged are the predictions of the second half of the iterations (the paper's ranges depend
    on the timestep). The residual is the RMS between the averaged and the last iterate.
    Source: Garibi et al. 2024 (ReNoise, arXiv:2403.14602), Alg. 1, without its noise
    regularisation and correction.
    """
    total, last = torch.zeros_like(x), x_next
    if iterations == 0:
        return x_next, 0.0
    for index in range(iterations):
        d = to_d(last, denoise(last, sigma_next), sigma_next)
        if index >= iterations // 2:
            total = total + d
        last = x + (sigma_next - sigma) * d
    averaged = x + (sigma_next - sigma) * total / (iterations - iterations // 2)
    return averaged, float((averaged - last).double().pow(2).mean().sqrt())


REFINEMENTS = {"fixed-point": refine_fixed_point, "renoise": refine_renoise}


def guide(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance on denoised predictions; scale 1 means conditional only.

    Source: Ho & Salimans 2022 (arXiv:2207.12598), Eq. 6 with w = guidance_scale - 1.
    """
    return torch.lerp(uncond, cond, guidance_scale)
