"""Runs of DDIM inversion on the host's model."""

import time
from collections.abc import Callable
from typing import Any

import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..attention.rows import TARGET_COND, TARGET_UNCOND
from ..diffusion.edit import check_finite
from ..diffusion.inversion import InversionState, invert_ddim
from ..diffusion.trajectory import Trajectory
from .conditioning import check_conditioning
from .guider import RowGuider, Rows, check_interrupted
from .model import check_latent, make_grid, model_facts

Inverter = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Any]
"""(denoise, clean, sigmas) -> iterator of InversionState."""


class InversionSampler(comfy.samplers.Sampler):
    """Walks up a grid with any inverter and keeps every state on the CPU."""

    def __init__(self, guider: RowGuider, inverter: Inverter, guidance_scale: float) -> None:
        self.guider, self.inverter, self.guidance_scale = guider, inverter, guidance_scale
        self.states: list[Tensor] = []
        self.residual = 0.0

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        options = extra_args["model_options"]
        last: dict[str, Tensor] = {}

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            check_interrupted()
            rows = [Rows(TARGET_COND, "positive", x)]
            if self.guidance_scale != 1:
                rows.insert(0, Rows(TARGET_UNCOND, "negative", x))
            out = self.guider.denoise_rows(rows, sigma, options)
            denoised = out[TARGET_COND]
            if self.guidance_scale != 1:
                denoised = self.guider.guide(
                    denoised, out[TARGET_UNCOND], self.guidance_scale, x, sigma, options
                )
            last["denoised"] = denoised
            return denoised

        steps = len(sigmas) - 1
        state: InversionState
        for state in self.inverter(denoise, latent_image, sigmas):
            check_finite(state.x, max(state.index - 1, 0), steps)
            self.states.append(state.x.to("cpu", torch.float32))
            self.residual = max(self.residual, state.residual)
            if state.index and callback is not None:
                callback(state.index - 1, last["denoised"], state.x, steps)
        return state.x


def invert(
    model: Any,
    positive: list,
    latent: dict,
    *,
    steps: int = 50,
    schedule: str = "diffusers",
    cfg: float = 1.0,
    evaluate_at: str = "next",
    refine: int = 0,
    negative: list | None = None,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Invert a LATENT with DDIM; return trajectory, noise samples, and SIGMAS for sampling down.

    Raises: RetraceError (see diffusion/errors.py) before any work when the input is wrong.
    """
    facts = model_facts(model)
    clean = check_latent(latent, facts)
    check_conditioning("positive", positive)
    grid = make_grid(model, schedule, steps, sigmas)
    conds = {"positive": positive}
    if cfg != 1:
        check_conditioning("negative", negative)
        conds["negative"] = negative
    guider = RowGuider(model, conds)
    sampler = InversionSampler(
        guider,
        lambda denoise, x, grid: invert_ddim(
            denoise, x, grid, evaluate_at=evaluate_at, refine=refine, flow=facts.flow
        ),
        cfg,
    )
    started = time.perf_counter()
    noise = run_guider(guider, clean, sampler, grid)
    trajectory = Trajectory(
        latents=torch.stack(sampler.states),
        sigmas=grid,
        clean=clean,
        model=facts,
        labels=evaluate_at,
        source=positive,
        negative=negative if cfg != 1 else None,
        guidance_scale=cfg,
        report=(
            ("inversion", "DDIM"),
            ("row_forwards", guider.row_forwards),
            ("seconds", time.perf_counter() - started),
            ("residual", sampler.residual),
        ),
    )
    return trajectory, noise, grid.flip(0)


def run_guider(
    guider: RowGuider, clean: Tensor, sampler: comfy.samplers.Sampler, sigmas: Tensor
) -> Tensor:
    """Run a sampler through the host: model loading, preview, progress, clean-up; float32 CPU."""
    callback = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)
    with torch.no_grad():
        out = guider.sample(
            torch.zeros_like(clean), clean, sampler, sigmas, callback=callback, disable_pbar=True
        )
    return out.to("cpu", torch.float32)
