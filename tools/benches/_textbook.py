"""Prompt-to-Prompt as the papers write it down: every attention map is made, edited, multiplied.

The yardstick of the attention bench, written from the papers' formulas with none of Retrace's
attention code, so that equal pictures also mean a right edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import latent_preview
import torch
from retrace.attention.rows import SOURCE_COND, SOURCE_UNCOND, TARGET_COND, TARGET_UNCOND
from retrace.diffusion.trajectory import Trajectory
from retrace.host.guider import RowGuider, Rows
from torch import Tensor

FOUR_ROWS = (SOURCE_UNCOND, TARGET_UNCOND, SOURCE_COND, TARGET_COND)
CONDS = dict(zip(FOUR_ROWS, ("negative", "negative", "source", "target"), strict=True))

EditMap = Callable[[str, int, Tensor], Tensor]
"""(kind, image tokens, map "rows heads queries keys") -> map."""


class Controller:
    """Word swap: the target's map is the source's, with words mapped, inside two windows.

    Source: Hertz et al. 2022 (arXiv:2208.01626), Sec. 3.2 and Alg. 1; rows are [uncond source,
    uncond target, cond source, cond target].
    """

    def __init__(self, mapper: Tensor, alphas: Tensor, self_steps: int, self_tokens: int) -> None:
        self.mapper, self.alphas = mapper, alphas
        self.self_steps, self.self_tokens = self_steps, self_tokens
        self.step = 0

    def __call__(self, kind: str, tokens: int, maps: Tensor) -> Tensor:
        source, target = maps[2], maps[3]
        if kind == "self":
            if self.step >= self.self_steps or tokens > self.self_tokens:
                return maps
            edited = source
        else:
            alpha = self.alphas[self.step].to(maps)
            if not bool(alpha.any()):
                return maps
            swapped = torch.einsum("hpw,wn->hpn", source, self.mapper.to(maps))
            edited = swapped * alpha + (1 - alpha) * target
        return torch.stack([maps[0], maps[1], source, edited])


def plain_map(kind: str, tokens: int, maps: Tensor) -> Tensor:
    """Change nothing: the published code makes the maps in every pass, edited or not."""
    return maps


def with_maps(model: Any, sites: tuple, edit_map: EditMap) -> Any:
    """Return a clone of a MODEL whose attention is softmax maps, passed through `edit_map`."""
    clone = model.clone()
    for site in sites:
        patch = materialised("self" if site.kind == "self" else "cross", edit_map)
        name = "attn1" if site.kind == "self" else "attn2"
        clone.set_model_patch_replace(patch, name, site.stage, site.index, site.sub_index)
    return clone


def materialised(kind: str, edit_map: EditMap) -> Callable:
    """Return an attention that makes its whole map, as diffusers did before fused attention."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        heads = extra["n_heads"]
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        logits = torch.einsum("rhqd,rhkd->rhqk", q, k) * q.shape[-1] ** -0.5
        maps = edit_map(kind, q.shape[2], logits.softmax(dim=-1))
        return torch.einsum("rhqk,rhkd->rhqd", maps, v).transpose(1, 2).flatten(2)

    return replace


class Walk(comfy.samplers.Sampler):
    """Runs a function (guider, options, device) -> latent inside the host's sampling."""

    def __init__(self, guider: RowGuider, walk: Callable[..., Tensor]) -> None:
        self.guider, self.walk = guider, walk

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        return self.walk(self.guider, extra_args["model_options"], noise.device)


def run_walk(model: Any, prompts: dict[str, list], trajectory: Trajectory, walk: Callable) -> tuple:
    """Run a walk through the host; return its latent and the row-forwards it took."""
    guider = RowGuider(model, prompts)
    empty = torch.zeros_like(trajectory.clean)
    with torch.no_grad():
        out = guider.sample(
            empty, trajectory.clean, Walk(guider, walk), trajectory.sigmas.flip(0),
            callback=latent_preview.prepare_callback(model, trajectory.steps), disable_pbar=True,
        )
    return out.cpu(), guider.row_forwards


def four_rows(guider: RowGuider, options: dict, source: Tensor, target: Tensor, sigma: Tensor,
              cfg: float) -> tuple[Tensor, Tensor]:
    """Return both branches' guided denoised predictions from one call of four rows."""
    states = (source, target, source, target)
    rows = [Rows(role, CONDS[role], x) for role, x in zip(FOUR_ROWS, states, strict=True)]
    out = guider.denoise_rows(rows, sigma, options)
    return (
        torch.lerp(out[SOURCE_UNCOND], out[SOURCE_COND], cfg),
        torch.lerp(out[TARGET_UNCOND], out[TARGET_COND], cfg),
    )


def step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Take a DDIM step without noise."""
    return denoised + (x - denoised) * (sigma_next / sigma)


def offset_walk(trajectory: Trajectory, cfg: float, offsets: list[Tensor]) -> Callable:
    """Return the pass in which Direct Inversion measures how far each step misses the states.

    Source: Ju et al. 2023 (arXiv:2310.01506), Alg. 1, first loop; both prompts are run.
    """

    def walk(guider: RowGuider, options: dict, device: torch.device) -> Tensor:
        states = trajectory.latents.to(device)
        for index in range(trajectory.steps, 0, -1):
            sigma, after = trajectory.sigmas[index].to(device), trajectory.sigmas[index - 1]
            x = states[index]
            source, _ = four_rows(guider, options, x, x, sigma, cfg)
            offsets.append(states[index - 1] - step(x, source, sigma, after.to(device)))
        return states[0]

    return walk


def edit_walk(
    trajectory: Trajectory, cfg: float, controller: Controller, offsets: list[Tensor] | None
) -> Callable:
    """Return the edit: four rows a step, the source set right by offsets or by the states."""

    def walk(guider: RowGuider, options: dict, device: torch.device) -> Tensor:
        states = trajectory.latents.to(device)
        source = target = states[trajectory.steps]
        for number in range(trajectory.steps):
            index = trajectory.steps - number
            sigma, after = (trajectory.sigmas[i].to(device) for i in (index, index - 1))
            controller.step = number
            predictions = four_rows(guider, options, source, target, sigma, cfg)
            source = step(source, predictions[0], sigma, after)
            target = step(target, predictions[1], sigma, after)
            source = states[index - 1] if offsets is None else source + offsets[number]
        return target / (1 + trajectory.sigmas[0].to(device) ** 2).sqrt()

    return walk
