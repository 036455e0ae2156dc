"""The walk down a trajectory that optimises something at each step: gradients, progress, cancel."""

from collections.abc import Iterator
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..diffusion.edit import check_finite
from ..diffusion.errors import TrajectoryError
from ..diffusion.inversion import from_level
from ..diffusion.trajectory import Trajectory
from .gradients import differentiable, gradient_run, guided_models, loss_scale
from .guider import RowGuider, Rows, check_interrupted
from .remembering import remembering


class OptimisingSampler(comfy.samplers.Sampler):
    """Runs an optimisation of `diffusion/` on the host's model; a subclass says which.

    states: one a step, moved to the CPU. backwards: rows that were differentiated.
    """

    learned: str
    """Name of a state's field that holds what was found."""

    def __init__(self, guider: RowGuider, trajectory: Trajectory, *, cfg: float, checkpointing: str,
                 settings: dict[str, Any]) -> None:
        self.guider, self.trajectory, self.cfg = guider, trajectory, cfg
        self.checkpointing, self.settings = checkpointing, settings
        self.states: list[Any] = []
        self.backwards = 0
        self.checkpointed = False

    def optimise(
        self, latents: Tensor, grid: Tensor, options: dict, **shared: Any
    ) -> Iterator[Any]:
        """Yield a state a step; `shared` are the arguments that all optimisations take."""
        raise NotImplementedError

    def inner_steps_before(self, step: int) -> int:
        """Return the most inner steps that the steps before this one take."""
        raise NotImplementedError

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        trajectory, guider, device = self.trajectory, self.guider, noise.device
        steps = trajectory.steps
        progress = comfy.utils.ProgressBar(self.inner_steps_before(steps))
        models = guided_models(guider)
        foreign = "optimized_attention_override" in extra_args["model_options"].get(
            "transformer_options", {}
        )
        with (
            gradient_run(*models, mode=self.checkpointing) as run,
            remembering(*models, attention=not foreign),
        ):
            options = differentiable(extra_args["model_options"])
            latents = trajectory.latents.to(device).clone()
            grid = trajectory.sigmas.to(device).clone()

            def differentiate(closure):
                check_interrupted()
                result = run(closure)
                self.backwards += trajectory.batch
                progress.update(1)
                return result

            for state in self.optimise(
                latents,
                grid,
                options,
                guided=lambda cond, uncond, x, sigma: guider.guide(
                    cond, uncond, self.cfg, x, sigma, options, ("source", "negative")
                ),
                differentiate=differentiate,
                loss_scale=loss_scale(guider.inner_model, noise[0].numel()),
                flow=trajectory.model.flow,
                **self.settings,
            ):
                check_finite(state.x, state.step, steps)
                found = {self.learned: getattr(state, self.learned).cpu()}
                self.states.append(state._replace(x=state.x.to("cpu", torch.float32), **found))
                progress.update_absolute(self.inner_steps_before(state.step + 1))
                if callback is not None:
                    callback(state.step, state.denoised, state.x, steps)
            self.checkpointed = run.checkpointed
            clean = from_level(state.x, grid[0], trajectory.model.flow)
        return clean.detach().clone()

    def evaluate(self, row: Rows, sigma: Tensor, options: dict) -> Tensor:
        """Return one row's prediction."""
        check_interrupted()
        return self.guider.denoise_rows([row], sigma, options)[row.role]


def check_optimisable(trajectory: Trajectory, name: str) -> None:
    """Raise TrajectoryError unless a trajectory has a source and is DDIM's."""
    if trajectory.source is None:
        raise TrajectoryError("this trajectory carries no source conditioning; invert again")
    if trajectory.solver != "euler":
        raise TrajectoryError(
            f"{name} is defined for DDIM, but this trajectory walks down with "
            f"{trajectory.solver!r}; use Invert-DDIM"
        )
