"""Inversions that sampling undoes exactly: EDICT, edit-friendly DDPM, LEDITS++, virtual."""

import time
from typing import Any

import torch
from torch import Tensor

from ..diffusion.edict import check_weight, edict_sigmas, invert_edict
from ..diffusion.edit_friendly import KINDS, Posterior, invert_edit_friendly, ledits_timesteps
from ..diffusion.errors import ScheduleError
from ..diffusion.schedule import check_grid
from ..diffusion.trajectory import Trajectory
from ..diffusion.virtual import invert_virtually
from .conditioning import check_conditioning
from .inversion import Walk, run_inversion
from .model import check_latent, discrete_sigmas, make_grid, model_facts

__all__ = ["KINDS", "invert_with_edict", "invert_with_noises", "invert_without_model"]


def invert_with_edict(
    model: Any,
    positive: list,
    latent: dict,
    *,
    steps: int = 50,
    schedule: str = "diffusers",
    strength: float = 0.8,
    weight: float = 0.93,
    cfg: float = 3.0,
    double: bool = True,
    negative: list | None = None,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Invert a LATENT with EDICT; return as `inversion.invert` does.

    schedule: "diffusers" is EDICT's own published grid; another is cut at the strength. strength:
    fraction of the steps, from the clean end, that are walked.
    """
    check_weight(weight)
    if not 0 < strength <= 1:
        raise ScheduleError(f"strength must be above 0 and at most 1, got {strength}")
    facts = model_facts(model)
    if schedule == "diffusers" and sigmas is None:
        grid = check_grid(edict_sigmas(discrete_sigmas(model), steps, strength))
    else:
        grid = make_grid(model, schedule, steps, sigmas)
        grid = check_grid(grid[: max(1, round((len(grid) - 1) * strength)) + 1])
    walk = Walk(
        "EDICT",
        lambda denoise, x, levels: invert_edict(
            denoise, x, levels, weight=weight, double=double, flow=facts.flow
        ),
        solver="edict",
    )
    trajectory, noise, levels = run_inversion(
        model, positive, latent, grid, walk, cfg=cfg, negative=negative
    )
    mix = torch.tensor(weight, dtype=torch.float64)
    return trajectory.replace(extras=(*trajectory.extras, ("mix", mix))), noise, levels


def invert_with_noises(
    model: Any,
    positive: list,
    latent: dict,
    *,
    steps: int = 50,
    schedule: str = "diffusers",
    cfg: float = 1.0,
    kind: str = "ddpm",
    eta: float = 1.0,
    skip: float = 0.15,
    keep_last_noise: bool = True,
    seed: int = 0,
    states: Tensor | None = None,
    negative: list | None = None,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Invert a LATENT with edit-friendly DDPM or LEDITS++; return as `inversion.invert` does.

    kind: "ddpm" or "sde-dpmpp-2" (LEDITS++). skip: of LEDITS++ with schedule "diffusers": fraction
    of the training range left out at the noisy end. states: noisy versions to use instead of
    drawing them, "steps batch channels height width" in the internal scale at the grid's levels.
    """
    Posterior(kind, eta)  # refuses bad options before any work
    facts = model_facts(model)
    if kind == "sde-dpmpp-2" and schedule == "diffusers" and sigmas is None:
        table = discrete_sigmas(model)
        labels = ledits_timesteps(steps, skip, len(table))
        grid = check_grid(torch.cat([table[:1], table[torch.tensor(labels)]]))
    else:
        grid = make_grid(model, schedule, steps, sigmas)
    walk = Walk(
        "edit-friendly DDPM" if kind == "ddpm" else "LEDITS++",
        lambda denoise, x, levels: invert_edit_friendly(
            denoise, x, levels, kind=kind, eta=eta, keep_last_noise=keep_last_noise, seed=seed,
            states=None if states is None else list(states.to(x)), flow=facts.flow,
        ),
        solver="ddpm" if kind == "ddpm" else "sde_dpmpp_2",
        labels="current",
        noises="noise",
    )
    trajectory, noise, levels = run_inversion(
        model, positive, latent, grid, walk, cfg=cfg, negative=negative
    )
    return trajectory.replace(extras=(("eta", torch.tensor(eta)),)), noise, levels


def invert_without_model(
    model: Any,
    positive: list,
    latent: dict,
    *,
    steps: int = 12,
    schedule: str = "diffusers",
    seed: int = 0,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Make InfEdit's virtual inversion, which asks the model nothing; return as `invert` does."""
    started = time.perf_counter()
    facts = model_facts(model)
    clean = check_latent(latent, facts)
    check_conditioning("positive", positive)
    grid = make_grid(model, schedule, steps, sigmas)
    inner = model.model.process_latent_in(clean).to("cpu", torch.float32)
    states, noises = invert_virtually(inner, grid, seed, facts.flow)
    trajectory = Trajectory(
        latents=states,
        sigmas=grid,
        clean=clean,
        model=facts,
        labels="current",
        solver="ddcm",
        source=positive,
        noises=noises,
        report=(
            ("inversion", "virtual (InfEdit)"),
            ("row_forwards", 0),
            ("seconds", time.perf_counter() - started),
        ),
    )
    noise = model.model.process_latent_out(states[-1]).to("cpu", torch.float32)
    return trajectory, noise, grid.flip(0)
