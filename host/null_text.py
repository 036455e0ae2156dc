"""Null-text optimisation on the host's model: gradients, progress, and the resulting trajectory."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention.rows import SOURCE_COND, SOURCE_UNCOND
from ..diffusion.errors import HostError, PlanError, TrajectoryError
from ..diffusion.null_text import NullState, optimise_null
from ..diffusion.trajectory import NullRule, SourceRule, Trajectory
from .conditioning import check_conditioning, single_entry
from .gradients import CHECKPOINTING
from .guider import RowGuider, Rows
from .inversion import run_guider
from .model import check_model
from .optimising import OptimisingSampler, check_optimisable
from .plots import draw_curves

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


class NullTextSampler(OptimisingSampler):
    """Walks down a trajectory and optimises an unconditional embedding at each step."""

    learned = "embedding"

    def inner_steps_before(self, step: int) -> int:
        return step * self.settings["inner_steps"]

    def optimise(
        self, latents: Tensor, grid: Tensor, options: dict, **shared: Any
    ) -> Iterator[NullState]:
        start = text_embedding(self.guider, "negative", grid[-1])
        return optimise_null(
            latents,
            grid,
            start.expand(self.trajectory.batch, -1, -1),
            lambda x, sigma, step: self.evaluate(Rows(SOURCE_COND, "source", x), sigma, options),
            lambda x, sigma, step, leaf: self.evaluate(
                Rows(SOURCE_UNCOND, "negative", x, leaf), sigma, options
            ),
            **shared,
        )


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
    check_optimisable(trajectory, "null-text optimisation")
    refuse_learned_values(trajectory)
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


def refuse_learned_values(trajectory: Trajectory) -> None:
    """Raise TrajectoryError for values that were trained against the plain negative prompt."""
    if trajectory.modulations is not None:
        raise TrajectoryError(
            "this trajectory has values learned by StyleDiffusion, which hold for the plain "
            "negative prompt only; connect Invert-DDIM's own trajectory"
        )


def walk(
    model: Any,
    trajectory: Trajectory,
    negative: list,
    cfg: float,
    checkpointing: str,
    settings: dict[str, Any],
) -> tuple[NullTextSampler, Tensor]:
    """Optimise along a trajectory; return the sampler with its states, and the samples reached."""
    guider = RowGuider(
        model, {"source": trajectory.source, "negative": negative}, trajectory.sigmas
    )
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


def final_loss(states: Sequence[Any]) -> float:
    """Return the mean over steps and images of the last loss before an image stopped."""
    columns = [column for state in states for column in state.losses.T]
    return sum(float(column[~column.isnan()][-1]) for column in columns) / len(columns)


def loss_curve(
    states: Sequence[Any],
    title: str = "Null-text optimisation, from the noisiest step to the cleanest",
    y_label: str = "mean squared error",
) -> Tensor:
    """Draw the loss over all inner steps, one curve an image of the batch, as an IMAGE."""
    losses = torch.cat([state.losses for state in states])  # [inner steps run, batch]
    curves = [
        [(float(number), float(loss)) for number, loss in enumerate(column)]
        for column in losses.T
    ]
    names = [f"image {n + 1}" for n in range(len(curves))] if len(curves) > 1 else []
    return draw_curves(
        curves,
        title=title,
        x_label="inner step",
        y_label=y_label,
        names=names,
    )
