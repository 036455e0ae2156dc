"""StyleDiffusion's walk down a trajectory on the host's model: gradients, maps, progress."""

from collections.abc import Iterable
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..attention.maps import PUBLISHED_DOWNSAMPLE
from ..attention.rows import SOURCE_COND, SOURCE_UNCOND
from ..attention.sites import Site, nearest_grid
from ..attention.value_inputs import map_loss, total_loss
from ..diffusion.edit import check_finite
from ..diffusion.errors import HostError
from ..diffusion.inversion import from_level
from ..diffusion.style_diffusion import StyleState, inner_steps_in_all, optimise_values
from ..diffusion.trajectory import Trajectory
from ..diffusion.value_network import (
    NetworkSize,
    fit_channels,
    initial_parameters,
    map_features,
)
from .gradients import differentiable, gradient_run, guided_models, loss_scale
from .guider import RowGuider, Rows, check_interrupted
from .map_guidance import recording
from .null_text import text_embedding
from .remembering import remembering
from .value_inputs import with_values


class StyleSampler(comfy.samplers.Sampler):
    """Walks down a trajectory and trains the values' network at each step."""

    def __init__(self, guider: RowGuider, trajectory: Trajectory, features: Tensor, *, cfg: float,
                 checkpointing: str, sites: tuple[Site, ...], map_weight: float, seed: int,
                 start: str, settings: dict[str, Any]) -> None:
        """features: "batch tokens channels"; sites: cross-attention layers, all of them."""
        self.guider, self.trajectory, self.features, self.cfg = guider, trajectory, features, cfg
        self.checkpointing, self.settings = checkpointing, settings
        self.sites, self.map_weight = sites, map_weight
        self.seed, self.start = seed, start
        self.map_sites = nearest_grid(sites, PUBLISHED_DOWNSAMPLE) if map_weight else frozenset()
        self.states: list[StyleState] = []
        self.wanted: tuple[int, dict[Site, Tensor]] = (-1, {})
        self.backwards = 0
        self.checkpointed = False

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        trajectory, guider, device = self.trajectory, self.guider, noise.device
        steps, inner = trajectory.steps, self.settings["inner_steps"]
        progress = comfy.utils.ProgressBar(inner_steps_in_all(inner, steps))
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
            prompt = text_embedding(guider, "source", grid[-1])
            features = fit_channels(self.features.clone(), prompt.shape[2]).to(device)
            size = NetworkSize(features.shape[1], prompt.shape[1])

            def differentiate(closure):
                check_interrupted()
                result = run(closure)
                self.backwards += trajectory.batch
                progress.update(1)
                return result

            for state in optimise_values(
                latents,
                grid,
                initial_parameters(size, trajectory.batch, self.seed, self.start).to(device),
                lambda parameters: map_features(parameters, features, size),
                lambda x, sigma, step: self.evaluate(
                    Rows(SOURCE_UNCOND, "negative", x), sigma, options
                ),
                lambda x, sigma, step, modulation: self.denoise_cond(
                    x, sigma, modulation, latents[steps - step], step, options
                ),
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
                    x=state.x.to("cpu", torch.float32), modulation=state.modulation.cpu()
                ))
                progress.update_absolute(inner_steps_in_all(inner, state.step + 1))
                if callback is not None:
                    callback(state.step, state.denoised, state.x, steps)
            self.checkpointed = run.checkpointed
            clean = from_level(state.x, grid[0], trajectory.model.flow)
        return clean.detach().clone()

    def evaluate(self, row: Rows, sigma: Tensor, options: dict) -> Tensor:
        """Return one row's prediction."""
        check_interrupted()
        return self.guider.denoise_rows([row], sigma, options)[row.role]

    def denoise_cond(
        self, x: Tensor, sigma: Tensor, modulation: Tensor, anchor: Tensor, step: int,
        options: dict,
    ) -> tuple[Tensor, Tensor]:
        """Return the source's prediction under changed values, and its maps' loss, "batch".

        anchor: the trajectory's state at this level, whose own maps are wanted. The published code
        takes those of the inversion's call on that state, under the next level's label.
        """
        reached: set[tuple] = set()
        plain, options = options, with_values(options, {SOURCE_COND: modulation}, reached.add)
        losses: dict[Site, Tensor] = {}
        if self.map_sites and torch.is_grad_enabled():
            wanted = self.wanted_maps(anchor, sigma, step, plain)

            def compare(site: Site, found: Tensor) -> None:
                # recomputation passes here again
                losses.setdefault(site, self.map_weight * map_loss(found, wanted[site]))

            options = recording(options, dict.fromkeys(self.map_sites, 1.0), compare)
        cond = self.evaluate(Rows(SOURCE_COND, "source", x), sigma, options)
        check_reached(site for site in self.sites if site.address not in reached)
        return cond, total_loss(losses, len(x), x)

    def wanted_maps(
        self, anchor: Tensor, sigma: Tensor, step: int, options: dict
    ) -> dict[Site, Tensor]:
        """Return the cross-attention maps of the trajectory's own state, made once a step."""
        if self.wanted[0] != step:
            found: dict[Site, Tensor] = {}
            look = recording(
                options, dict.fromkeys(self.map_sites, 1.0),
                lambda site, seen: found.update({site: seen}),
            )
            with torch.no_grad():
                self.evaluate(Rows(SOURCE_COND, "source", anchor), sigma, look)
            check_reached(self.map_sites - set(found))
            self.wanted = (step, found)
        return self.wanted[1]


def check_reached(missed: Iterable[Site]) -> None:
    """Raise HostError if layers were missed."""
    names = sorted(map(str, missed))
    if names:
        raise HostError(
            f"{len(names)} cross-attention layers were never reached by StyleDiffusion "
            f"({', '.join(names[:4])}): another node replaces these blocks; remove it"
        )
