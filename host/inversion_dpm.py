"""DPM-Solver++ inversion on the host's model."""

from typing import Any

from torch import Tensor

from ..diffusion.dpm_solver import METHODS, VARIANTS, check_options, invert_dpm_solver
from ..diffusion.trajectory import Trajectory
from .inversion import Walk, run_inversion
from .model import make_grid, model_facts

__all__ = ["METHODS", "VARIANTS", "invert_with_dpm_solver"]


def invert_with_dpm_solver(
    model: Any,
    positive: list,
    latent: dict,
    *,
    steps: int = 30,
    schedule: str = "diffusers",
    cfg: float = 1.0,
    order: int = 2,
    iterations: int = 10,
    tolerance: float = 1e-4,
    variant: str = "fine",
    method: str = "fixed-point",
    negative: list | None = None,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory, Tensor, Tensor]:
    """Invert a LATENT with DPM-Solver++; return as `inversion.invert` does.

    Options: see `diffusion.dpm_solver.invert_dpm_solver`.
    Raises: RetraceError before any work when the input is wrong.
    """
    check_options(order, variant, method, iterations, tolerance, 1)
    facts, grid = model_facts(model), make_grid(model, schedule, steps, sigmas)
    walk = Walk(
        f"DPM-Solver++ {order} ({variant + ', ' if order == 2 else ''}{method})",
        lambda denoise, x, levels: invert_dpm_solver(
            denoise, x, levels, order=order, variant=variant, method=method,
            iterations=iterations, tolerance=tolerance, flow=facts.flow,
        ),
        solver="dpmpp_2m" if order == 2 else "dpmpp_1",
    )
    return run_inversion(model, positive, latent, grid, walk, cfg=cfg, negative=negative)
