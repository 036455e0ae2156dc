"""Gradients of cross-attention maps with respect to the target's latent, on the host's model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..attention.map_guidance import MapGuidance, check_step, cross_map, map_distance, total
from ..attention.rows import (
    SOURCE_COND,
    SOURCE_UNCOND,
    TARGET_COND,
    TARGET_UNCOND,
    Role,
)
from ..attention.sites import Site
from ..diffusion.errors import HostError, PlanError
from ..diffusion.null_text import loss_gradient
from .attach import fused
from .gradients import differentiable, gradient_run, guided_models, loss_scale
from .guider import ACTIVE, RowGuider, Rows, check_interrupted
from .pixart import is_pixart, watched_maps

PAIRS = ((SOURCE_COND, TARGET_COND),)
PUBLISHED_PAIRS = ((SOURCE_UNCOND, TARGET_UNCOND), *PAIRS)


class MapPuller:
    """Takes guidance steps in one run, and remembers what to report of them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.out_of_memory = False

    def pull(
        self,
        sampler: Any,
        guidance: MapGuidance,
        step: int,
        sigma: Tensor,
        source: Tensor,
        target: Tensor,
        options: dict,
        recorded: dict[Site, Tensor] | None = None,
    ) -> Tensor:
        """Return the target after one step against the gradient of the maps' distance.

        The step is amount times the gradient with respect to z = x / sqrt(1 + sigma^2), as
        published. Leaves rows' own latents in `sampler.own` in the published mode.
        recorded: the source's maps, "images heads queries keys" by layer; its rows are not
          evaluated then.
        Raises: DivergenceError when the step is not finite or longer than the latent.
        """
        check_interrupted()
        if guidance.published and sampler.cfg == 1:
            raise PlanError("published XAttn-Guidance needs an unconditional row; set cfg above 1")
        pairs = PUBLISHED_PAIRS if guidance.published else PAIRS
        latents = {role: source for role, _ in pairs} | {role: target for _, role in pairs}
        rows = {role: sampler.row(role, x, step) for role, x in latents.items()}
        mode = "always" if self.out_of_memory else guidance.checkpointing
        losses, gradients, checkpointed = map_gradients(
            sampler.guider,
            [(rows[a], rows[b]) for a, b in pairs],
            sigma,
            options,
            guidance.weights,
            mode,
            recorded,
        )
        self.out_of_memory |= checkpointed and mode == "auto"
        scale = 1.0 if sampler.trajectory.model.flow else float(1 + sigma**2)
        moves = {
            role: -guidance.amount * scale * gradient for role, gradient in gradients.items()
        }
        for move in moves.values():
            check_step(move, target, step)
        self.losses.append(float(losses.mean()))
        root = scale**0.5
        self.norms.append(float(next(iter(gradients.values())).double().norm()) * root)
        if not guidance.published:
            return target + moves[TARGET_COND]
        moved = target + moves[TARGET_UNCOND]
        sampler.own = {TARGET_COND: target + moves[TARGET_COND]}
        return moved

    def report(self) -> dict[str, Any]:
        """Return the losses and gradient norms, step by step, for the edit's report."""
        if not self.norms:
            return {}
        return {
            "map_loss": " ".join(f"{loss:.5g}" for loss in self.losses),
            "gradient_norm": " ".join(f"{norm:.5g}" for norm in self.norms),
        }


def map_gradients(
    guider: RowGuider,
    pairs: Sequence[tuple[Rows, Rows]],
    sigma: Tensor,
    options: dict,
    weights: dict[Site, float],
    mode: str,
    recorded: dict[Site, Tensor] | None = None,
) -> tuple[Tensor, dict[Role, Tensor], bool]:
    """Return the maps' distance per image, its gradient with respect to each target row's latent
    by role (float32), and whether checkpointing was used.

    pairs: (source row, target row) whose maps are compared. Source rows run without gradients.
    recorded: the maps of the first rows of all pairs, which are then not evaluated.
    Controllers do not act here: the maps are the ones the prompts make by themselves.
    """
    models, network = guided_models(guider), guider.inner_model.diffusion_model
    with gradient_run(*models, mode=mode) as run:
        options = differentiable(options)
        level = sigma.clone()
        images = len(pairs[0][1].x)
        sources, targets = ([copy_row(pair[i]) for pair in pairs] for i in (0, 1))
        wanted: dict[Site, Tensor] = recorded or {}
        if not wanted:
            with torch.no_grad():
                def remember(site: Site, found: Tensor) -> None:
                    wanted[site] = found

                with looking(network, options, weights, remember) as look:
                    guider.denoise_rows(sources, level, look)
        missed = set(weights) - set(wanted)
        if missed:
            raise HostError(
                f"{len(missed)} cross-attention layers were never reached by XAttn-Guidance "
                f"({min(map(str, missed))}): another node replaces these blocks; remove it"
            )

        parts: dict[Site, Tensor] = {}

        def compare(site: Site, found: Tensor) -> None:
            distance = weights[site] * map_distance(found, wanted[site], images)
            parts.setdefault(site, distance)  # recomputation passes here again

        def measure(leaf: Tensor) -> Tensor:
            check_interrupted()
            parts.clear()
            rows = [
                row._replace(x=x) for row, x in zip(targets, leaf.chunk(len(targets)), strict=True)
            ]
            guider.denoise_rows(rows, level, look)
            return total(list(parts.values()))

        leaf = torch.cat([row.x for row in targets])
        scale = loss_scale(guider.inner_model, 256.0)
        # recomputation needs the hooks until the gradient is there
        with looking(network, options, weights, compare) as look:
            losses, gradient = run(lambda: loss_gradient(measure, leaf, scale))
        chunks = gradient.chunk(len(targets))
        found = {row.role: chunk for row, chunk in zip(targets, chunks, strict=True)}
        return losses, found, run.checkpointed


def copy_row(row: Rows) -> Rows:
    """Return a row whose tensors were not made in inference mode."""
    embedding = None if row.embedding is None else row.embedding.clone()
    return row._replace(x=row.x.clone(), embedding=embedding)


@contextmanager
def looking(
    network: torch.nn.Module,
    options: dict,
    weights: dict[Site, float],
    take: Callable[[Site, Tensor], None],
) -> Iterator[dict]:
    """Yield model options under which `take` gets the map of each cross-attention in `weights`."""
    if not is_pixart(network):
        yield recording(options, weights, take)
        return

    def hand(site: Site, q: Tensor, k: Tensor, heads: int) -> None:
        take(site, cross_map(q, k, heads))

    with watched_maps(network, weights, hand):
        yield options


def recording(
    options: dict, weights: dict[Site, float], take: Callable[[Site, Tensor], None]
) -> dict:
    """Return model options under which `take` gets the map of each cross-attention in `weights`.

    Another pack's replacement of a layer keeps its place; the map is that of the plain attention.
    """
    transformer = {**options.get("transformer_options", {})}
    replaces = {**transformer.get("patches_replace", {})}
    attn2 = {**replaces.get("attn2", {})}
    for site in weights:
        before = attn2.get(site.address) or attn2.get((site.stage, site.index))
        attn2[site.address] = observed(site, before, take)
    replaces["attn2"] = attn2
    transformer["patches_replace"] = replaces
    return {**options, "transformer_options": transformer}


def observed(site: Site, before: Any, take: Callable[[Site, Tensor], None]) -> Callable:
    """Return a replacement of one cross-attention that hands its map on and changes nothing."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        if ACTIVE in extra:
            take(site, cross_map(q, k, extra["n_heads"]))
        if before is not None:
            return before(q, k, v, extra)
        return fused(extra)(q, k, v)

    return replace
