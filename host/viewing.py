"""Pictures of a trajectory: a filmstrip of its states, and how well sampling retraces it."""

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..attention.plan import RunFacts
from ..attention.run import EditRun
from ..diffusion.errors import PlanError
from ..diffusion.inversion import from_level
from ..diffusion.trajectory import SourceRule, Trajectory
from .conditioning import check_conditioning
from .editing import EditSampler
from .guider import RowGuider, check_interrupted
from .inversion import run_guider
from .model import check_model
from .plots import draw_curves, load_font

TILE = 256
"""Greatest side of one picture of the strip, pixels."""
CAPTION = 28


class TracingSampler(EditSampler):
    """An edit without controllers that keeps every state of the target branch."""

    def after_step(self, step, sigma, source, target):
        level = from_level(target, sigma, self.trajectory.model.flow)
        self.states.append(level.to("cpu", torch.float32))
        return target

    def sample(self, *args, **kwargs):
        self.states: list[Tensor] = []
        return super().sample(*args, **kwargs)


def view(
    trajectory: Trajectory,
    vae: Any,
    frames: int,
    *,
    model: Any = None,
    cfg: float | None = None,
    negative: list | None = None,
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Return the filmstrip, a report, and the plot of the round trip (blank without a model)."""
    strip = filmstrip(trajectory, vae, frames)
    report = {
        "steps": trajectory.steps,
        "solver": trajectory.solver,
        "sigmas": f"{float(trajectory.sigmas[0]):.4g} to {float(trajectory.sigmas[-1]):.4g}",
        "cfg": trajectory.guidance_scale,
        **{name: v for name, v in trajectory.report if isinstance(v, str | int | float)},
    }
    if model is None:
        return strip, report, torch.ones(1, 64, 64, 3)
    errors = round_trip(model, trajectory, cfg, negative)
    report["round_trip_error"] = errors[-1]
    report["greatest_error"] = max(errors)
    curve = [(number + 1, error) for number, error in enumerate(errors)]
    plot = draw_curves(
        [curve],
        title=f"Round trip: {errors[-1]:.3g} at the image",
        x_label="step, noisy to clean",
        y_label="relative error",
    )
    return strip, report, plot


def round_trip(
    model: Any, trajectory: Trajectory, cfg: float | None = None, negative: list | None = None
) -> list[float]:
    """Return how far sampling with the source prompt strays, one number per step, noisy to clean.

    cfg: guidance scale of the way down (None: the inversion's own). The number is the RMS
    difference to the trajectory's state at the same level, over that state's RMS.
    Raises: PlanError if a guidance above 1 has no negative conditioning to work with.
    """
    check_model(model, trajectory)
    check_conditioning("source", trajectory.source)
    cfg = trajectory.guidance_scale if cfg is None else cfg
    negative = negative or trajectory.negative
    conds = {"source": trajectory.source, "positive": trajectory.source}
    if cfg != 1:
        if negative is None:
            raise PlanError(
                f"a round trip at cfg {cfg:g} needs a negative conditioning; connect one, or set "
                "cfg to 1"
            )
        conds["negative"] = negative
    pinned = trajectory.replace(source_rule=SourceRule(pinned=True))
    height, width = trajectory.clean.shape[2:]
    run = EditRun(RunFacts(trajectory.steps, 0, height, width, trajectory.batch, ()), ())
    guider = RowGuider(model, conds)
    sampler = TracingSampler(guider, pinned, run, cfg=cfg, source_until=0, mask=None)
    run_guider(guider, trajectory.clean, sampler, trajectory.sigmas.flip(0))
    errors = []
    for step, walked in enumerate(sampler.states):
        wanted = state_at(trajectory, trajectory.steps - step - 1)
        errors.append(float((walked - wanted).double().norm() / wanted.double().norm()))
    return errors


def state_at(trajectory: Trajectory, index: int) -> Tensor:
    """Return a state as a latent of ordinary size, "batch channels height width"."""
    return from_level(
        trajectory.latents[index], trajectory.sigmas[index], trajectory.model.flow
    )


def to_latent_scale(trajectory: Trajectory, z: Tensor) -> Tensor:
    """Return internal latents in the scale of the host's LATENT, which the VAE decodes.

    The latent formats of the host are affine per channel; scale and shift are read off the clean
    latent, which the trajectory holds in both scales, so no model is needed.
    """
    inner = state_at(trajectory, 0).double()
    outer = trajectory.clean.double()
    axes = (0, 2, 3)
    mean_in, mean_out = inner.mean(axes, keepdim=True), outer.mean(axes, keepdim=True)
    spread = (inner - mean_in).pow(2).sum(axes, keepdim=True)
    slope = ((inner - mean_in) * (outer - mean_out)).sum(axes, keepdim=True) / spread
    # a channel that is constant says nothing; it has the scale of the others
    known = slope[torch.isfinite(slope)]
    slope = torch.where(torch.isfinite(slope), slope, known.mean() if len(known) else 1.0)
    return ((z.double() - mean_in) * slope + mean_out).float()


def filmstrip(trajectory: Trajectory, vae: Any, frames: int) -> Tensor:
    """Decode `frames` states from clean to noisy side by side, one strip an image of the batch.

    Returns an IMAGE, "batch height width 3"; every picture is labelled with its level and sigma.
    Raises: PlanError for less than one frame, or a VAE of another kind of latents.
    """
    if frames < 1:
        raise PlanError(f"frames must be at least 1, got {frames}")
    channels, taken = trajectory.latents.shape[2], getattr(vae, "latent_channels", None)
    if isinstance(taken, int) and taken != channels:
        raise PlanError(
            f"the trajectory has {channels} channels and this VAE takes {taken}; connect the VAE "
            "of the checkpoint that made the trajectory"
        )
    count = min(frames, trajectory.steps + 1)
    indices = torch.linspace(0, trajectory.steps, count).round().long().tolist()
    columns = []
    for index in indices:
        check_interrupted()
        picture = vae.decode(to_latent_scale(trajectory, state_at(trajectory, index)))
        picture = picture.detach().to("cpu", torch.float32).clamp(0, 1)
        picture = picture.reshape(-1, *picture.shape[-3:])  # video-shaped decoders add an axis
        text = f"{index}: sigma {float(trajectory.sigmas[index]):.3g}"
        columns.append(caption(fit(picture), text))
    return torch.cat(columns, dim=2)


def fit(pictures: Tensor) -> Tensor:
    """Scale an IMAGE down to the strip's tile size, "batch height width 3"."""
    factor = min(1.0, TILE / max(pictures.shape[1:3]))
    if factor == 1:
        return pictures
    size = [max(1, round(side * factor)) for side in pictures.shape[1:3]]
    channels_first = pictures.movedim(-1, 1)
    return F.interpolate(channels_first, size=size, mode="area").movedim(1, -1)


def caption(pictures: Tensor, text: str) -> Tensor:
    """Put a line of text above an IMAGE and a thin margin beside it."""
    width = pictures.shape[2]
    bar = Image.new("RGB", (width + 4, CAPTION), (255, 255, 255))
    font = load_font(14)
    ImageDraw.Draw(bar).text(((width + 4) / 2, CAPTION / 2), text, fill=(0, 0, 0), font=font,
                             anchor="mm")
    pixels = torch.frombuffer(bytearray(bar.tobytes()), dtype=torch.uint8)
    top = pixels.reshape(1, CAPTION, width + 4, 3).float() / 255
    body = F.pad(pictures, (0, 0, 2, 2), value=1.0)
    return torch.cat([top.expand(len(pictures), -1, -1, -1), body], dim=1)
