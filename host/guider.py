"""A host guider that evaluates rows: any mix of roles, each with its own latent and cond."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from ..attention.rows import Role, RowLayout
from .compat import own_call_options, warn_of_spread
from .conditioning import merge_entries, single_entry
from .merging import Merging
from .merging_pixart import merging_layers
from .pixart import is_pixart
from .plans import ACTIVE

APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL


class Rows(NamedTuple):
    """What one role is evaluated on: cond's name, latent, its text embedding if not the cond's."""

    role: Role
    cond: str
    x: Tensor
    embedding: Tensor | None = None


class RowGuider(comfy.samplers.CFGGuider):
    """CFGGuider whose conds have names; model loading, hooks and clean-up stay the host's.

    Tokens are merged in every call where the model carries PatchMerge.
    """

    def __init__(
        self, model: Any, conditionings: Mapping[str, list], grid: Tensor | None = None
    ) -> None:
        """grid: all levels of the run's trajectory, increasing; windows are fractions of it."""
        super().__init__(model)
        warn_of_spread(model)
        self.inner_set_conds(dict(conditionings))
        self.merging = Merging.of(model, grid)
        self.row_forwards = 0
        self.calls = 0

    def denoise_rows(
        self, rows: Sequence[Rows], sigma: Tensor, model_options: dict
    ) -> dict[Role, Tensor]:
        """Return the denoised prediction of every role in one model call.

        rows: in batch order, each x "images channels height width".
        sigma: "", or "images" for images at levels of their own.
        """
        images = len(rows[0].x)
        layout = RowLayout(tuple(row.role for row in rows), images)
        names = [row.cond for row in rows]
        entries = [single_entry(name, self.conds[name], sigma.flatten()[0]) for name in names]
        merged = merge_entries(
            names, entries, images, [row.embedding for row in rows],
            repeat_text=is_pixart(self.inner_model.diffusion_model),
        )
        x = torch.cat([row.x for row in rows])
        options, call = self.merging.attach(model_options, layout, sigma, x)
        with merging_layers(self.inner_model.diffusion_model, call):
            out = comfy.samplers.calc_cond_batch(
                self.inner_model,
                [[merged]],
                x,
                sigma.to(x).expand(images).repeat(len(rows)),
                with_layout(options, layout),
            )[0]
        self.merging.note(call)
        self.row_forwards += layout.rows
        self.calls += 1
        return {row.role: out[layout.slice(row.role)] for row in rows}

    def guide(
        self,
        cond: Tensor,
        uncond: Tensor,
        guidance_scale: float,
        x: Tensor,
        sigma: Tensor,
        model_options: dict,
        names: tuple[str, str] = ("positive", "negative"),
    ) -> Tensor:
        """Return the guided prediction of one branch through the host's own guidance hooks."""
        conds = [self.conds.get(name) for name in names]
        timestep = sigma.to(x).expand(len(x))
        out = [cond, uncond]
        for hook in model_options.get("sampler_pre_cfg_function", []):
            out = hook(
                {
                    "conds": conds,
                    "conds_out": out,
                    "cond_scale": guidance_scale,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": model_options,
                }
            )
        return comfy.samplers.cfg_function(
            self.inner_model,
            out[0],
            out[1],
            guidance_scale,
            x,
            timestep,
            model_options=model_options,
            cond=conds[0],
            uncond=conds[1],
        )


def with_layout(model_options: dict, layout: RowLayout) -> dict:
    """Return model options whose model call tells hooks and other packs which rows are which.

    Other packs read `cond_or_uncond` as one entry per equal chunk of rows: a role is a chunk.
    """
    halves = [int(role.half == "uncond") for role in layout.roles]

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None,
                    transformer_options=None, **kwargs):
        options = {
            **(transformer_options or {}),
            "cond_or_uncond": halves,
            "uuids": [(transformer_options or {}).get("uuids", [None])[0]] * len(halves),
            ACTIVE: layout,
        }
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    options = own_call_options(model_options)
    transformer = options["transformer_options"]
    wrappers = {**transformer.get("wrappers", {})}
    wrappers[APPLY_MODEL] = {**wrappers.get(APPLY_MODEL, {}), "retrace": [apply_model]}
    transformer["wrappers"] = wrappers
    return options


def check_interrupted() -> None:
    """Raise the host's interrupt if the user cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
