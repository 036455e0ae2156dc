"""How the branches of an edit step down: one class a solver, named by the trajectory.

A solver asks for guided predictions of all branches at once, because some couple them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from .dpm_solver import DPMSolver
from .edict import Edict
from .edit_friendly import Replay
from .errors import TrajectoryError
from .steps import step_euler
from .virtual import Virtual

Branches = Mapping[str, Tensor]
"""Latents by branch, "source" and "target"; "batch channels height width" each."""

GuidedDenoise = Callable[[Branches, Tensor], Branches]
"""(branches, sigma) -> guided denoised predictions, of the branches whose prediction is read."""


class Solver(Protocol):
    """One step towards less noise.

    memory: this run's scratch; holds "step" (absolute, 0 the noisiest), "steps", "flow", the
    trajectory's states, noises and extras (see `edit.new_memory`), and what the solver puts there.
    A solver with `needs_source` asks for the source's prediction also where it is pinned; one
    with `replays` is the inversion's exact inverse at the inversion's own guidance scale, which
    the source branch then keeps. `needs` names what must be in memory.
    """

    def step(
        self,
        branches: Branches,
        denoise: GuidedDenoise,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[Branches, Branches]:
        """Return the stepped branches and the denoised predictions they came from."""
        ...


class Euler:
    """DDIM with eta 0 (the host's Euler sampler); see `steps.step_euler`."""

    def step(self, branches, denoise, sigma, sigma_next, memory):
        denoised = denoise(branches, sigma)
        stepped = {
            name: step_euler(branches[name], prediction, sigma, sigma_next)
            for name, prediction in denoised.items()
        }
        return stepped, denoised


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "dpmpp_1": lambda: DPMSolver(1),
    "dpmpp_2m": lambda: DPMSolver(2),
    "edict": Edict,
    "ddpm": lambda: Replay("ddpm"),
    "sde_dpmpp_2": lambda: Replay("sde-dpmpp-2"),
    "ddcm": Virtual,
}


def make_solver(name: str) -> Solver:
    """Return a fresh solver. Raises: TrajectoryError if no solver has that name."""
    if name not in SOLVERS:
        raise TrajectoryError(
            f"this trajectory wants the solver {name!r}, which this version does not have "
            f"(it has {', '.join(sorted(SOLVERS))}); update Retrace or repeat the inversion"
        )
    return SOLVERS[name]()


def replays(name: str) -> bool:
    """Whether a solver's source branch keeps the inversion's guidance scale (see `Solver`)."""
    return getattr(make_solver(name), "replays", False)


def needs_source(solver: Solver) -> bool:
    """Whether a solver couples the target to the source's prediction (see `Solver`)."""
    return getattr(solver, "needs_source", False)


def check_needs(solver: Solver, name: str, memory: Mapping[str, Any]) -> None:
    """Raise TrajectoryError if a trajectory lacks what its solver needs."""
    lacking = [need for need in getattr(solver, "needs", ()) if need not in memory]
    if lacking:
        raise TrajectoryError(
            f"this trajectory wants the solver {name!r} but carries no {lacking[0]!r}; repeat the "
            "inversion"
        )
