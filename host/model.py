"""What Retrace needs to know of the host's MODEL: kind, noise levels, attention layers."""

from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ..attention.sites import Site
from ..diffusion.errors import HostError, LatentError, ScheduleError, TrajectoryError
from ..diffusion.schedule import check_grid, leading_sigmas
from ..diffusion.trajectory import ModelFacts, Trajectory

PREDICTIONS = {"EPS": "eps", "V_PREDICTION": "v", "FLOW": "flow", "FLUX": "flow"}

SCHEDULES = ("diffusers", *comfy.samplers.SCHEDULER_NAMES)


def model_facts(model: Any) -> ModelFacts:
    """Describe a ModelPatcher. Raises: HostError for a kind of model Retrace does not know."""
    base = model.model
    kind = getattr(base.model_type, "name", str(base.model_type))
    if kind not in PREDICTIONS:
        raise HostError(
            f"this model predicts {kind.lower()}, which inversion does not support; supported are "
            "eps-, v-prediction and rectified-flow models"
        )
    latent_format = base.latent_format
    prediction = PREDICTIONS[kind]
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        prediction = "v"  # the ModelSamplingDiscrete node changes this without the model's type
    elif isinstance(sampling, comfy.model_sampling.EPS):
        prediction = "eps"
    return ModelFacts(
        family=type(base).__name__ + ":" + type(base.diffusion_model).__name__,
        prediction=prediction,
        latent_format=type(latent_format).__name__,
        channels=int(latent_format.latent_channels),
    )


def check_model(model: Any, trajectory: Trajectory) -> ModelFacts:
    """Return the model's facts, or raise TrajectoryError if the trajectory is of another model."""
    facts = model_facts(model)
    if facts != trajectory.model:
        raise TrajectoryError(
            f"this trajectory was made with {describe(trajectory.model)}, but the model here is "
            f"{describe(facts)}; invert again with this model"
        )
    return facts


def describe(facts: ModelFacts) -> str:
    """Say what a model is, for error messages."""
    return (
        f"{facts.family.partition(':')[0]} ({facts.prediction}-prediction, "
        f"{facts.channels}-channel {facts.latent_format} latents)"
    )


def check_latent(latent: dict, facts: ModelFacts) -> Tensor:
    """Return the samples of a LATENT, float32 "batch channels height width"; else LatentError."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or getattr(samples, "is_nested", False):
        raise LatentError("expected an image LATENT; audio and video latents cannot be inverted")
    if samples.ndim != 4:
        raise LatentError(
            f"expected a latent [batch channels height width], got {list(samples.shape)}; video "
            "latents cannot be inverted"
        )
    if samples.shape[1] != facts.channels:
        raise LatentError(
            f"the latent has {samples.shape[1]} channels but {describe(facts)} needs "
            f"{facts.channels}; encode the image with this model's own VAE"
        )
    if not bool(torch.isfinite(samples).all()):
        raise LatentError(
            "the latent contains NaN or Inf; the VAE probably overflowed in fp16: try --fp32-vae "
            "or another VAE"
        )
    if min(samples.shape) == 0:
        raise LatentError(f"the latent is empty: {list(samples.shape)}")
    return samples.detach().to("cpu", torch.float32)


def make_grid(model: Any, schedule: str, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """Return the noise levels of a run, increasing "steps+1".

    schedule: "diffusers" is the published grid (see `leading_sigmas`); others are the host's
    schedulers. sigmas: a host SIGMAS, used instead when given.
    Raises: ScheduleError.
    """
    if sigmas is not None:
        return check_grid(sigmas)
    if steps < 1:
        raise ScheduleError(f"steps must be at least 1, got {steps}")
    sampling = model.get_model_object("model_sampling")
    if schedule == "diffusers":
        return check_grid(leading_sigmas(discrete_sigmas(model), steps))
    if schedule not in comfy.samplers.SCHEDULER_NAMES:
        raise ScheduleError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    return check_grid(comfy.samplers.calculate_sigmas(sampling, schedule, steps))


def discrete_sigmas(model: Any) -> Tensor:
    """Return the model's own noise level of every training timestep, increasing.

    Raises: ScheduleError for models without discrete timesteps.
    """
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        raise ScheduleError(
            "the published 'diffusers' grid exists only for models with discrete timesteps; "
            "choose another schedule (for example 'simple')"
        )
    return sampling.sigmas.detach().to("cpu", torch.float32)


def unet_sites(unet: torch.nn.Module) -> tuple[Site, ...]:
    """List the attention layers of a UNetModel in call order, read from the live modules."""
    sites, counts = [], {"self": 0, "cross": 0}
    stages = [("input", list(unet.input_blocks)), ("middle", [unet.middle_block])]
    stages.append(("output", list(unet.output_blocks)))
    down = 1
    for stage, blocks in stages:
        for index, block in enumerate(blocks):
            if block is None:
                continue
            for layer in block:
                name = type(layer).__name__
                if name == "Downsample":
                    down *= 2
                for sub_index, inner in enumerate(getattr(layer, "transformer_blocks", ())):
                    for kind, attribute in (("self", "attn1"), ("cross", "attn2")):
                        if getattr(inner, attribute, None) is None:
                            continue
                        sites.append(Site(kind, stage, index, sub_index, counts[kind], down))
                        counts[kind] += 1
                if name == "Upsample":
                    down //= 2
    return tuple(sites)


def attention_sites(model: Any) -> tuple[Site, ...]:
    """List the model's attention layers. Raises: HostError for an unsupported architecture."""
    network = model.get_model_object("diffusion_model")
    if hasattr(network, "input_blocks") and hasattr(network, "output_blocks"):
        return unet_sites(network)
    raise HostError(
        f"attention control does not support {type(network).__name__} yet; supported are UNets "
        "(SD1.5, SD2.x, SDXL). Without a controller the Edit-Sampler works with this model"
    )
