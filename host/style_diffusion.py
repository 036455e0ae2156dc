"""StyleDiffusion on the host's model: what goes in, and the trajectory that comes out."""

import time
from typing import Any

import torch
from torch import Tensor

from ..attention.sites import Site
from ..diffusion.errors import HostError, PlanError, TrajectoryError
from ..diffusion.trajectory import Trajectory, ValueRule
from ..diffusion.value_network import STARTS
from .conditioning import check_conditioning
from .gradients import CHECKPOINTING
from .guider import RowGuider
from .inversion import run_guider
from .model import attention_sites, check_model
from .null_text import final_loss, loss_curve
from .optimising import check_optimisable
from .pixart import is_pixart
from .style_sampler import StyleSampler
from .vision import image_tokens


def train(
    model: Any,
    trajectory: Trajectory,
    negative: list,
    clip_vision: Any,
    image: Tensor,
    *,
    cfg: float = 7.5,
    inner_steps: int = 100,
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    map_weight: float = 1.0,
    start: str = "published",
    seed: int = 0,
    checkpointing: str = "auto",
) -> tuple[Trajectory, Tensor]:
    """Train StyleDiffusion's networks; return the trajectory with values, the loss curve IMAGE.

    image: what the trajectory was inverted from. map_weight: of the loss that keeps the
    cross-attention maps of the inversion; 0 leaves it out. start: see `value_network`.
    Source: Li et al. 2023 (arXiv:2303.15649). Only what the networks put out for this image is
    kept, for they are never asked about another.
    Raises: RetraceError before any work when the input is wrong.
    """
    check_input(model, trajectory, negative)
    if start not in STARTS or checkpointing not in CHECKPOINTING:
        raise PlanError(
            f"unknown start {start!r} or checkpointing {checkpointing!r}; choose from "
            f"{', '.join(STARTS)} and {', '.join(CHECKPOINTING)}"
        )
    if not 0 <= map_weight < float("inf"):
        raise PlanError(f"map_weight must be a number of at least 0, got {map_weight}")
    sites = cross_sites(model)
    features = image_tokens(clip_vision, image, trajectory.batch)
    started = time.perf_counter()
    conds = {"source": trajectory.source, "negative": negative}
    guider = RowGuider(model, conds, trajectory.sigmas)
    sampler = StyleSampler(
        guider, trajectory, features, cfg=cfg, checkpointing=checkpointing,
        sites=sites, map_weight=map_weight, seed=seed, start=start,
        settings={"inner_steps": inner_steps, "learning_rate": learning_rate,
                  "early_stop": early_stop},
    )
    run_guider(guider, trajectory.clean, sampler, trajectory.sigmas.flip(0))
    trained = trajectory.replace(
        modulations=torch.stack([state.modulation for state in sampler.states]),
        value_rule=ValueRule(),
    ).noted(
        refinement="StyleDiffusion",
        style_cfg=cfg,
        style_seconds=time.perf_counter() - started,
        style_row_forwards=guider.row_forwards,
        style_row_backwards=sampler.backwards,
        style_loss=final_loss(sampler.states),
        image_tokens="{} of {} channels".format(*features.shape[1:]),
        checkpointing=sampler.checkpointed,
    )
    return trained, loss_curve(
        sampler.states,
        title="StyleDiffusion, from the noisiest step to the cleanest",
        y_label="mean squared error, latent and maps",
    )


def check_input(model: Any, trajectory: Trajectory, negative: list) -> None:
    """Raise RetraceError if values cannot be trained on this trajectory."""
    check_model(model, trajectory)
    check_conditioning("negative", negative)
    check_optimisable(trajectory, "StyleDiffusion")
    if trajectory.null_embeddings is not None:
        raise TrajectoryError(
            "this trajectory has null embeddings already, and StyleDiffusion trains against the "
            "plain negative prompt; connect Invert-DDIM's own trajectory"
        )


def cross_sites(model: Any) -> tuple[Site, ...]:
    """Return the cross-attention layers of a UNet. Raises: HostError for other networks."""
    network = model.get_model_object("diffusion_model")
    if is_pixart(network):
        raise HostError(
            "StyleDiffusion does not support PixArt: it trains the values of a UNet's "
            "cross-attention; use SD1.5, SD2.x or SDXL, or pin the source with "
            "Invert-DirectInversion"
        )
    sites = attention_sites(model) if hasattr(network, "input_blocks") else ()
    cross = tuple(site for site in sites if site.kind == "cross")
    if not cross:
        raise HostError(
            f"StyleDiffusion trains the values of a UNet's cross-attention, which "
            f"{type(network).__name__} does not have; use SD1.5, SD2.x or SDXL, or pin the source "
            "with Invert-DirectInversion"
        )
    return cross


def set_window(trajectory: Trajectory, target: float) -> Trajectory:
    """Return the trajectory whose target branch uses the learned values in this fraction of steps.

    Raises: TrajectoryError when there are none, PlanError for a fraction outside [0, 1].
    """
    if trajectory.modulations is None:
        raise TrajectoryError(
            "this trajectory has no learned values; connect one from Invert-StyleDiffusion"
        )
    if not 0 <= target <= 1:
        raise PlanError(f"the target's fraction must be between 0 and 1, got {target}")
    return trajectory.replace(value_rule=ValueRule(target))
