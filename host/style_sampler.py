"""StyleDiffusion's walk down a trajectory on the host's model: learned values, maps."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..attention.maps import PUBLISHED_DOWNSAMPLE
from ..attention.rows import SOURCE_COND, SOURCE_UNCOND
from ..attention.sites import Site, nearest_grid
from ..attention.value_inputs import map_loss, total_loss
from ..diffusion.errors import HostError
from ..diffusion.style_diffusion import StyleState, inner_steps_in_all, optimise_values
from ..diffusion.trajectory import Trajectory
from ..diffusion.value_network import (
    NetworkSize,
    fit_channels,
    initial_parameters,
    map_features,
)
from .guider import RowGuider, Rows
from .map_guidance import recording
from .null_text import text_embedding
from .optimising import OptimisingSampler
from .value_inputs import with_values


class StyleSampler(OptimisingSampler):
    """Walks down a trajectory and trains the values' network at each step."""

    learned = "modulation"

    def __init__(self, guider: RowGuider, trajectory: Trajectory, features: Tensor, *,
                 sites: tuple[Site, ...], map_weight: float, seed: int, start: str,
                 **walk: Any) -> None:
        """features: "batch tokens channels"; sites: cross-attention layers, all of them."""
        super().__init__(guider, trajectory, **walk)
        self.features, self.sites, self.map_weight = features, sites, map_weight
        self.seed, self.start = seed, start
        self.map_sites = nearest_grid(sites, PUBLISHED_DOWNSAMPLE) if map_weight else frozenset()
        self.wanted: tuple[int, dict[Site, Tensor]] = (-1, {})

    def inner_steps_before(self, step: int) -> int:
        return inner_steps_in_all(self.settings["inner_steps"], step)

    def optimise(
        self, latents: Tensor, grid: Tensor, options: dict, **shared: Any
    ) -> Iterator[StyleState]:
        steps, batch = self.trajectory.steps, self.trajectory.batch
        prompt = text_embedding(self.guider, "source", grid[-1])
        features = fit_channels(self.features.clone(), prompt.shape[2]).to(latents.device)
        size = NetworkSize(features.shape[1], prompt.shape[1])
        parameters = initial_parameters(size, batch, self.seed, self.start)
        return optimise_values(
            latents,
            grid,
            parameters.to(latents.device),
            lambda parameters: map_features(parameters, features, size),
            lambda x, sigma, step: self.evaluate(
                Rows(SOURCE_UNCOND, "negative", x), sigma, options
            ),
            lambda x, sigma, step, modulation: self.denoise_cond(
                x, sigma, modulation, latents[steps - step], step, options
            ),
            **shared,
        )

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
