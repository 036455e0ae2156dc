"""The walk down from noise to the edited latent, with the source branch beside it. Pure loop."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import DivergenceError, PlanError
from .inversion import from_level
from .solvers import Branches, check_needs, make_solver, needs_source
from .trajectory import Trajectory


class Denoise(Protocol):
    """Guided predictions of the wanted branches at one step."""

    def __call__(
        self, branches: Branches, sigma: Tensor, step: int, wanted: Collection[str]
    ) -> Branches: ...


class EditState(NamedTuple):
    """After one step: its number (0: the noisiest), the level reached, both latents, target x0."""

    step: int
    sigma: Tensor
    target: Tensor
    source: Tensor | None
    denoised: Tensor


AfterStep = Callable[[int, Tensor, Tensor | None, Tensor], Tensor]
"""(step, sigma_next, source, target) -> target; blends happen here, after the source is pinned."""


def edit(
    trajectory: Trajectory,
    denoise: Denoise,
    *,
    device: torch.device | str = "cpu",
    start_step: int = 0,
    source_until: int | None = None,
    after_step: AfterStep | None = None,
    before_step: AfterStep | None = None,
    initial: Tensor | None = None,
) -> Iterator[EditState]:
    """Yield a state after every step from the noisy end to the clean one.

    start_step: steps left out at the noisy end; the walk starts on the trajectory's state there.
    source_until: a source branch that is not exactly pinned is sampled for the steps before this
      one (None: for all); an exactly pinned one costs no prediction of its own.
    before_step: (step, sigma, source, target) -> target, before anything is predicted.
    initial: the target's first state, if it is not the trajectory's ("batch channels h w").
    The order within a step is: guidance, solver step, pinning of the source, `after_step`
    (algorithms 20, rule 5).
    Raises: PlanError for a start outside the trajectory, DivergenceError for NaN or Inf.
    """
    steps, rule = trajectory.steps, trajectory.source_rule
    if not 0 <= start_step < steps:
        raise PlanError(
            f"start_step must be between 0 and {steps - 1} for this trajectory, got {start_step}"
        )
    source_until = steps if source_until is None else source_until
    sigmas = trajectory.sigmas.to(device)
    solver, memory = make_solver(trajectory.solver), new_memory(trajectory, start_step, device)
    check_needs(solver, trajectory.solver, memory)
    source: Tensor | None = trajectory.latents[steps - start_step].to(device)
    target = source if initial is None else initial.to(device)
    for step in range(start_step, steps):
        index = steps - step
        samples_source = (not rule.exact and step < source_until) or needs_source(solver)
        wanted = ("source", "target") if samples_source else ("target",)
        if before_step is not None:
            target = before_step(step, sigmas[index], source, target)
        branches = {"target": target}
        if source is not None:
            branches["source"] = source
        memory["step"] = step
        stepped, denoised = solver.step(
            branches,
            lambda x, sigma, step=step, wanted=wanted: denoise(x, sigma, step, wanted),
            sigmas[index],
            sigmas[index - 1],
            memory,
        )
        target = stepped["target"]
        source = advance_source(trajectory, step, stepped.get("source"), device)
        if after_step is not None:
            target = after_step(step, sigmas[index - 1], source, target)
        check_finite(target, step, steps)
        yield EditState(step, sigmas[index - 1], target, source, denoised["target"])


def new_memory(trajectory: Trajectory, start_step: int, device: torch.device | str) -> dict:
    """Return the solver's scratch for one run: what the trajectory carries for its solver."""
    memory: dict[str, Any] = {name: tensor.to(device) for name, tensor in trajectory.extras}
    memory["step"], memory["steps"] = start_step, trajectory.steps
    memory["flow"] = trajectory.model.flow
    if trajectory.solver != "euler":  # which needs nothing of the trajectory
        memory["latents"] = trajectory.latents.to(device)
        first, level = trajectory.latents[0], trajectory.sigmas[0]
        memory["clean"] = from_level(first, level, trajectory.model.flow).to(device)
    if trajectory.noises is not None:
        memory["noises"] = trajectory.noises.to(device)
    return memory


def advance_source(
    trajectory: Trajectory, step: int, sampled: Tensor | None, device: torch.device | str
) -> Tensor | None:
    """Return the source branch after a step: on the trajectory, corrected towards it, or free.

    sampled: the source after the solver's step, or None when it was not evaluated.
    Source: Ju et al. 2023 (arXiv:2310.01506), Alg. 1. The offset z*_{t-1} - DDIM(z_t) is taken
    from this very step instead of a pass of its own: controllers never change the source row.
    """
    rule = trajectory.source_rule
    anchor = trajectory.latents[trajectory.steps - step - 1].to(device)
    if rule.exact:
        return anchor
    if sampled is None:
        return None
    correction = rule.correction(step)
    return sampled + correction * (anchor - sampled) if correction else sampled


def check_finite(x: Tensor, step: int, steps: int) -> None:
    """Raise DivergenceError if x has NaN or Inf."""
    if not bool(torch.isfinite(x).all()):
        raise DivergenceError(
            f"the latent became NaN or Inf at step {step + 1} of {steps}; usual causes are a model "
            "in fp16 that needs fp32 or bf16, a guidance scale that is too high, or a broken patch "
            "in the model chain"
        )
