"""Null-text optimisation on the host's model: gradients, progress, and the resulting trajectory."""

import time
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..attention.rows import SOURCE_COND, SOURCE_UNCOND
from ..diffusion.edit import check_finite
from ..diffusion.errors import HostError, PlanError, TrajectoryError
from ..diffusion.inversion import from_level
from ..diffusion.null_text import NullState, optimise_null
from ..diffusion.trajectory import NullRule, SourceRule, Trajectory
from .conditioning import check_conditioning, single_entry
from .gradients import (
    CHECKPOINTING,
    differentiable,
    gradient_run,
    guided_models,
    loss_scale,
)
from .guider import RowGuider, Rows, check_interrupted
from .inversion import run_guider
from .model import check_model
from .plots import draw_curves
from .remembering import remembering

VARIANTS = ("null-text", "null-latent", "single-branch")

EMBEDDING = "c_crossattn"


def text_embedding(guider: RowGuider, name: str, sigma: Tensor) -> Tensor:
    """Return a cond's text embedding while its guider runs, float32 "batch-or-1 tokens dim"."""
    cond = single_entry(name, guider.conds[name], sigma)["model_conds"].get(EMBEDDING)
    if cond is None:
        raise HostError(
            f"the {name} conditioning has no text embedding that this model reads; null-text and "
            "negative-prompt inversion need one"
        )
    return cond.cond.detach().clone().to(torch.float32)


class NullTextSampler(comfy.samplers.Sampler):
    """Walks down a trajectory and optimises an unconditional embedding at each step."""

    def __init__(self, guider: RowGuider, trajectory: Trajectory, *, cfg: float, checkpointing: str,
                 settings: dict[str, Any]) -> None:
        self.guider, self.trajectory, self.cfg = guider, trajectory, cfg
        self.checkpointing, self.settings = checkpointing, settings
        self.states: list[NullState] = []
        self.backwards = 0
        self.checkpointed = False

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        trajectory, guider, device = self.trajectory, self.guider, noise.device
        steps, inner = trajectory.steps, self.settings["inner_steps"]
        progress = comfy.utils.ProgressBar(steps * inner)
        models = guided_models(guider)
        foreign = "optimized_attention_override" in extra_args["model_options"].get(
            "transformer_options", {}
        )
        with (
            gradient_run(*models, mode=self.checkpointing) as run,
            remembering(*models, attention=not foreign),
        ):
            options = differentiable(extra_args["model_options"])
            grid = trajectory.sigmas.to(device).clone()

            def differentiate(closure):
                check_interrupted()
                result = run(closure)
                self.backwards += trajectory.batch
                progress.update(1)
                return result

            def evaluate(x, sigma, role, name, embedding=None):
                check_interrupted()
                return guider.denoise_rows([Rows(role, name, x, embedding)], sigma, options)[role]

            for state in optimise_null(
                trajectory.latents.to(device).clone(),
                grid,
                text_embedding(guider, "negative", grid[-1]).expand(trajectory.batch, -1, -1),
                lambda x, sigma, step: evaluate(x, sigma, SOURCE_COND, "source"),
                lambda x, sigma, step, leaf: evaluate(x, sigma, SOURCE_UNCOND, "negative", leaf),
                guided=lambda cond, uncond, x, sigma: guider.guide(
                    cond, uncond, self.cfg, x, sigma, options, ("source", "negative")
                ),
                differentiate=differentiate,
                loss_scale=loss_scale(guider.inner_model, noise[0].numel()),
                flow=trajectory.model.flow,
                **self.settings,
            ):
                check_finite(state.x, state.step, steps)
                self.states.append(state._replace(
                    x=state.x.to("cpu", torch.float32), embedding=state.embedding.cpu()
                ))
                progress.update_absolute((state.step + 1) * inner)
                if callback is not None:
                    callback(state.step, state.denoised, state.x, steps)
            self.checkpointed = run.checkpointed
            clean = from_level(state.x, grid[0], trajectory.model.flow)
        return clean.detach().clone()


def optimise(
    model: Any,
    trajectory: Trajectory,
    negative: list,
    *,
    cfg: float = 7.5,
    inner_steps: int = 10,
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    variant: str = "null-text",
    checkpointing: str = "auto",
) -> tuple[Trajectory, Tensor]:
    """Run null-text optimisation; return the refined trajectory and the loss curve IMAGE.

    variant: "null-text" uses the embeddings for both branches; "single-branch" for the source only;
    "null-latent" keeps the negative prompt for both and pins the source to the latents that the
    embeddings led to (as published, the step's difference is added to the source as an offset).
    Source: Mokady et al. 2022 (arXiv:2211.09794); the variants are ablations of Ju et al. 2023
    (arXiv:2310.01506), null-latent without its row-broadcasting defect.
    Raises: RetraceError before any work when the input is wrong.
    """
    check_model(model, trajectory)
    check_conditioning("negative", negative)
    rows = negative[0][0].shape[0]
    if rows not in (1, trajectory.batch):
        raise HostError(
            f"the negative text has {rows} rows and the trajectory {trajectory.batch} images; "
            "encode one text for all, or one for each"
        )
    if variant not in VARIANTS or checkpointing not in CHECKPOINTING:
        raise PlanError(
            f"unknown variant {variant!r} or checkpointing {checkpointing!r}; choose from "
            f"{', '.join(VARIANTS)} and {', '.join(CHECKPOINTING)}"
        )
    if trajectory.source is None:
        raise TrajectoryError("this trajectory carries no source conditioning; invert again")
    if trajectory.solver != "euler":
        raise TrajectoryError(
            f"null-text optimisation is defined for DDIM, but this trajectory walks down with "
            f"{trajectory.solver!r}; use Invert-DDIM"
        )
    if cfg == 1:
        raise PlanError(
            "at cfg 1 the unconditional embedding has no effect; set the cfg of the edit, e.g. 7.5"
        )
    settings = {"inner_steps": inner_steps, "learning_rate": learning_rate,
                "early_stop": early_stop}
    started = time.perf_counter()
    sampler, clean = walk(model, trajectory, negative, cfg, checkpointing, settings)
    states = sampler.states
    refined = apply_variant(trajectory, states, variant, clean).noted(
        refinement=variant,
        null_cfg=cfg,
        null_seconds=time.perf_counter() - started,
        null_row_forwards=sampler.guider.row_forwards,
        null_row_backwards=sampler.backwards,
        null_loss=final_loss(states),
        checkpointing=sampler.checkpointed,
    )
    return refined, loss_curve(states)


def walk(
    model: Any,
    trajectory: Trajectory,
    negative: list,
    cfg: float,
    checkpointing: str,
    settings: dict[str, Any],
) -> tuple[NullTextSampler, Tensor]:
    """Optimise along a trajectory; return the sampler with its states, and the samples reached."""
    guider = RowGuider(model, {"source": trajectory.source, "negative": negative})
    sampler = NullTextSampler(
        guider, trajectory, cfg=cfg, checkpointing=checkpointing, settings=settings
    )
    clean = run_guider(guider, trajectory.clean, sampler, trajectory.sigmas.flip(0))
    return sampler, clean


def apply_variant(
    trajectory: Trajectory, states: list[NullState], variant: str, clean: Tensor
) -> Trajectory:
    """Return the trajectory with what was found written into it; clean: LATENT samples reached."""
    if variant == "null-latent":
        walked = [state.x for state in reversed(states)]
        return trajectory.replace(
            latents=torch.stack([*walked, trajectory.latents[-1]]),
            clean=clean,
            source_rule=SourceRule(pinned=True),
            null_embeddings=None,
        )
    return trajectory.replace(
        null_embeddings=torch.stack([state.embedding for state in states]),
        null_rule=NullRule(target=variant == "null-text"),
    )


def final_loss(states: list[NullState]) -> float:
    """Return the mean over steps and images of the last loss before an image stopped."""
    columns = [column for state in states for column in state.losses.T]
    return sum(float(column[~column.isnan()][-1]) for column in columns) / len(columns)


def loss_curve(states: list[NullState]) -> Tensor:
    """Draw the loss over all inner steps, one curve an image of the batch, as an IMAGE."""
    losses = torch.cat([state.losses for state in states])  # [inner steps run, batch]
    curves = [
        [(float(number), float(loss)) for number, loss in enumerate(column)]
        for column in losses.T
    ]
    names = [f"image {n + 1}" for n in range(len(curves))] if len(curves) > 1 else []
    return draw_curves(
        curves,
        title="Null-text optimisation, from the noisiest step to the cleanest",
        x_label="inner step",
        y_label="mean squared error",
        names=names,
    )
