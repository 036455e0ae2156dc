"""Negative-prompt inversion, and the host's noise level for proximal guidance's window."""

from typing import Any

import torch
from torch import Tensor

from ..attention.proximal import ProximalGuidance
from ..diffusion.embeddings import slerp
from ..diffusion.errors import PlanError, TrajectoryError
from ..diffusion.trajectory import NullRule, Trajectory
from .conditioning import check_conditioning
from .editing import with_controller


def invert_negative_prompt(
    trajectory: Trajectory, negative: list, interpolation: float = 0.0
) -> Trajectory:
    """Use the source prompt as unconditional embedding at every step, in place of an optimised one.

    interpolation: 0 is the source prompt, 1 the negative one; between them on the great circle.
    Source: Miyake et al. 2023 (arXiv:2305.16807), Sec. 4.2; interpolation from the published code.
    Raises: TrajectoryError or PlanError when the embeddings do not fit together.
    """
    source = only_embedding("source", trajectory.source)
    check_conditioning("negative", negative)
    embedding = source
    if interpolation:
        other = only_embedding("negative", negative)
        if other.shape[1:] != source.shape[1:]:
            raise PlanError(
                f"the source prompt is encoded as {list(source.shape[1:])} and the negative as "
                f"{list(other.shape[1:])}: interpolation needs the same length; set it to 0, or "
                "use prompts of similar length and the same CLIP"
            )
        embedding = slerp(source, other.expand(len(source), -1, -1), interpolation)
    if len(embedding) not in (1, trajectory.batch):
        raise TrajectoryError(
            f"the source conditioning has {len(embedding)} rows but the trajectory "
            f"{trajectory.batch} images; encode one prompt, or one an image"
        )
    per_image = embedding.expand(trajectory.batch, -1, -1)
    return trajectory.replace(
        null_embeddings=per_image.expand(trajectory.steps, -1, -1, -1),
        null_rule=NullRule(entry="source"),
    ).noted(refinement="negative prompt", interpolation=interpolation)


def only_embedding(name: str, conditioning: Any) -> Tensor:
    """Return the text embedding of a CONDITIONING of one part, float32 "batch-or-1 tokens dim"."""
    if conditioning is None:
        raise TrajectoryError("this trajectory carries no source conditioning; invert again")
    check_conditioning(name, conditioning)
    if len(conditioning) != 1:
        raise PlanError(
            f"the {name} conditioning has {len(conditioning)} parts; negative-prompt inversion "
            "needs one: remove Conditioning (Combine) and timestep ranges"
        )
    return conditioning[0][0].detach().to("cpu", torch.float32)


def with_proximal_guidance(
    model: Any, *, pull_until: float, rate: float, **asked: Any
) -> Any:
    """Return a MODEL with proximal guidance.

    pull_until: fraction of the training timesteps below which the pull acts (published: 0.4, the
      reference's recon_t of 400 out of 1000); 0 turns it off.
    """
    level = 0.0
    if pull_until > 0:
        sampling = model.get_model_object("model_sampling")
        level = float(sampling.percent_to_sigma(1 - pull_until))
    controller = ProximalGuidance(
        rate=rate if level > 0 else 0.0, below_sigma=level, **asked
    )
    return with_controller(model, controller)
