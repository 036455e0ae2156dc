"""Runs of inversions on the host's model: one way to run them all, and DDIM's own options."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..attention.rows import TARGET_COND, TARGET_UNCOND
from ..diffusion.edit import check_finite
from ..diffusion.inversion import InversionState, invert_ddim
from ..diffusion.regularise import VARIANTS as REGULARISATIONS
from ..diffusion.regularise import random_shifts, regularised
from ..diffusion.steps import REFINEMENTS, Denoise
from ..diffusion.trajectory import Trajectory
from .conditioning import check_conditioning
from .guider import RowGuider, Rows, check_interrupted
from .model import check_latent, make_grid, model_facts

__all__ = ["REFINEMENTS", "REGULARISATIONS", "invert", "run_guider", "run_inversion"]

Inverter = Callable[[Denoise, Tensor, Tensor], Iterator[InversionState]]
"""(denoise, clean, sigmas) -> iterator of InversionState."""


class InversionSampler(comfy.samplers.Sampler):
    """Walks up a grid with any inverter and keeps every state on the CPU, by its level."""

    def __init__(self, guider: RowGuider, inverter: Inverter, guidance_scale: float) -> None:
        self.guider, self.inverter, self.guidance_scale = guider, inverter, guidance_scale
        self.states: dict[int, InversionState] = {}

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

        steps, done = len(sigmas) - 1, 0
        for state in self.inverter(denoise, latent_image, sigmas):
            check_finite(state.x, max(state.index - 1, 0), steps)
            self.states[state.index] = to_cpu(state)
            if last and callback is not None:
                shown = last["denoised"].to(torch.float32)
                callback(min(done, steps - 1), shown, state.x, steps)
                done += 1
        return self.states[steps].x.to(latent_image)

    def in_order(self) -> list[InversionState]:
        """Return the states from clean to noisy."""
        return [self.states[index] for index in sorted(self.states)]


def to_cpu(state: InversionState) -> InversionState:
    """Return a state in float32 on the CPU; what it keeps beside keeps its precision."""
    kept = tuple((name, tensor.to("cpu")) for name, tensor in state.kept)
    return state._replace(x=state.x.to("cpu", torch.float32), kept=kept)


class Walk(NamedTuple):
    """A way from image to noise: its name, its inverter, and what walks down from it.

    noises: name of the kept tensor that becomes the trajectory's noises.
    """

    name: str
    inverter: Inverter
    solver: str = "euler"
    labels: str = "next"
    noises: str = ""


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
    refine_method: str = "fixed-point",
    regularise: str = "off",
    seed: int = 0,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Invert a LATENT with DDIM; return trajectory, noise samples, and SIGMAS for sampling down.

    refine_method: see `diffusion.inversion`; regularise: "off" or a variant of
    `diffusion.regularise`, whose random shifts come from `seed`.
    Raises: RetraceError (see diffusion/errors.py) before any work when the input is wrong.
    """
    facts = model_facts(model)
    grid = make_grid(model, schedule, steps, sigmas)

    def inverter(denoise: Denoise, x: Tensor, levels: Tensor) -> Iterator[InversionState]:
        if regularise != "off":
            shifts = random_shifts(seed, regularise)
            denoise = regularised(denoise, shifts, regularise, facts.flow)
        return invert_ddim(
            denoise, x, levels, evaluate_at=evaluate_at, refine=refine,
            refine_method=refine_method, flow=facts.flow,
        )

    walk = Walk("DDIM", inverter, labels=evaluate_at)
    return run_inversion(model, positive, latent, grid, walk, cfg=cfg, negative=negative)


def run_inversion(
    model: Any,
    positive: list,
    latent: dict,
    grid: Tensor,
    walk: Walk,
    *,
    cfg: float = 1.0,
    negative: list | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Run any inversion on the host's model; return as `invert` does.

    grid: "steps+1" increasing.
    Raises: RetraceError before any work when the input is wrong.
    """
    facts = model_facts(model)
    clean = check_latent(latent, facts)
    check_conditioning("positive", positive)
    conds = {"positive": positive}
    if cfg != 1:
        check_conditioning("negative", negative)
        conds["negative"] = negative
    guider = RowGuider(model, conds)
    sampler = InversionSampler(guider, walk.inverter, cfg)
    started = time.perf_counter()
    noise = run_guider(guider, clean, sampler, grid)
    states = sampler.in_order()
    kept = stack_kept(states)
    iterations = sum(state.iterations for state in states)
    trajectory = Trajectory(
        latents=torch.stack([state.x for state in states]),
        sigmas=grid,
        clean=clean,
        model=facts,
        labels=walk.labels,
        solver=walk.solver,
        source=positive,
        negative=negative if cfg != 1 else None,
        guidance_scale=cfg,
        noises=kept.pop(walk.noises, None),
        extras=tuple(kept.items()),
        report=(
            ("inversion", walk.name),
            ("row_forwards", guider.row_forwards),
            ("seconds", time.perf_counter() - started),
            ("residual", max(state.residual for state in states)),
            *(convergence(states) if iterations else ()),
        ),
    )
    return trajectory, noise, grid.flip(0)


def convergence(states: Sequence[InversionState]) -> tuple[tuple[str, Any], ...]:
    """Return report entries on the inner solves: model calls in all, and "calls: residual" each."""
    solves = ", ".join(f"{s.iterations}: {s.residual:.1e}" for s in states[1:])
    return (("iterations", sum(s.iterations for s in states)), ("solve_per_step", solves))


def stack_kept(states: Sequence[InversionState]) -> dict[str, Tensor]:
    """Stack what states keep beside x, by name, in the order of an edit's steps for noises.

    A tensor kept by every level is stacked from clean to noisy, "steps+1 ..."; one kept only by
    levels above the clean one belongs to the step that starts there and is stacked in the order
    of the steps, noisiest first, "steps ...".
    """
    stacked = {}
    for name in dict.fromkeys(name for state in states for name, _ in state.kept):
        tensors = [dict(state.kept)[name] for state in states if name in dict(state.kept)]
        if len(tensors) == len(states) - 1:
            tensors.reverse()
        stacked[name] = torch.stack(tensors)
    return stacked


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
