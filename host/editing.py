"""The Edit-Sampler's run: branches, rows, guidance and blends on the host's model."""

import logging
import time
from collections.abc import Collection
from typing import Any, NamedTuple

import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.plan import RunFacts
from ..attention.rows import (
    LAYOUT_COND,
    LAYOUT_UNCOND,
    SOURCE_COND,
    SOURCE_UNCOND,
    TARGET_COND,
    TARGET_UNCOND,
    Role,
    RowLayout,
)
from ..attention.run import EditRun
from ..attention.windows import window_steps
from ..diffusion.edit import LayoutBranch, edit
from ..diffusion.errors import LatentError, PlanError, TrajectoryError
from ..diffusion.inversion import from_level
from ..diffusion.solvers import Branches, replays
from ..diffusion.trajectory import Trajectory
from .attach import attach, foreign_self, network_hooks
from .capture import check_store
from .conditioning import check_conditioning, single_entry
from .guider import RowGuider, Rows, check_interrupted
from .inversion import run_guider
from .map_guidance import MapPuller
from .model import attention_sites, check_model
from .plans import PLAN as PLAN
from .plans import get_plan
from .plans import with_controller as with_controller
from .value_inputs import with_values

PIXELS_PER_LATENT = 8
"""Image pixels per side of a latent's pixel, where the host's latent format does not say."""

log = logging.getLogger(__name__)

ROW_ORDER = (
    TARGET_UNCOND, SOURCE_UNCOND, LAYOUT_UNCOND, SOURCE_COND, LAYOUT_COND, TARGET_COND
)

CONDS = {
    SOURCE_COND: "source",
    SOURCE_UNCOND: "negative",
    TARGET_COND: "positive",
    TARGET_UNCOND: "negative",
    LAYOUT_COND: "source",
    LAYOUT_UNCOND: "negative",
}


class EditResult(NamedTuple):
    """Edited and source LATENT samples, masks [batch height width] in pixels, the report.

    mask: where the edit could act. foreground_source, foreground_target: what MasaCtrl's masks
    were at the last step; ones without such masks.
    """

    edited: Tensor
    source: Tensor
    mask: Tensor
    report: dict[str, Any]
    foreground_source: Tensor
    foreground_target: Tensor


class EditSampler(comfy.samplers.Sampler):
    """Walks down both branches of a trajectory on a RowGuider."""

    def __init__(
        self,
        guider: RowGuider,
        trajectory: Trajectory,
        run: EditRun,
        *,
        cfg: float,
        source_until: int | None,
        mask: Tensor | None,
    ) -> None:
        self.guider, self.trajectory, self.run = guider, trajectory, run
        self.cfg, self.source_until, self.mask = cfg, source_until, mask
        self.source: Tensor | None = None
        self.source_embedding: Tensor | None = None
        self.replays = replays(trajectory.solver)
        self.puller = MapPuller()
        self.own: dict[Role, Tensor] = {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        plain = extra_args["model_options"]
        network = self.guider.inner_model.diffusion_model
        options = attach(plain, network, self.run) if self.run.facts.sites else plain
        trajectory, start = self.trajectory, self.run.facts.start_step
        total = trajectory.steps - start

        def denoise(x: Branches, sigma: Tensor, step: int, wanted: Collection[str]) -> Branches:
            check_interrupted()
            return self.denoise(x, sigma, step, wanted, self.learned(step, options))

        with network_hooks(network, self.run):
            for state in edit(
                trajectory,
                denoise,
                device=noise.device,
                start_step=start,
                source_until=self.source_until,
                after_step=self.after_step,
                before_step=lambda step, *reached: self.before_step(
                    step, *reached, self.learned(step, plain)
                ),
                layout=LayoutBranch(self.run.layout_steps, self.run.see_layout),
            ):
                if callback is not None:
                    callback(state.step - start, state.denoised, state.target, total)
        if state.source is not None:
            self.source = from_level(state.source, state.sigma, trajectory.model.flow)
        return from_level(state.target, state.sigma, trajectory.model.flow)

    def denoise(
        self, x: Branches, sigma: Tensor, step: int, wanted: Collection[str], options: dict
    ) -> Branches:
        """Evaluate the rows somebody reads in one call; return guided predictions of `wanted`."""
        roles = self.run.source_roles(step)
        for branch in wanted:
            roles.add(Role(branch, "cond"))
            own_null = branch == "source" and self.unguided_source(step, sigma)
            if self.scale(branch) != 1 and not own_null:
                roles.add(Role(branch, "uncond"))
        if "layout" in wanted:  # its attention looks at both others' rows of its halves
            halves = {role.half for role in roles if role.branch == "layout"}
            roles |= {Role(branch, half) for branch in ("source", "target") for half in halves}
        rows = [
            self.row(role, self.own.get(role, x[role.branch]), step)
            for role in ROW_ORDER
            if role in roles
        ]
        images = len(x["target"])
        self.run.begin(step, RowLayout(tuple(row.role for row in rows), images))
        out = self.guider.denoise_rows(rows, sigma, options)
        self.run.end()
        for role, latent in self.own.items():  # eps is what such a row predicts for the branch
            out[role] = out[role] + (x[role.branch] - latent)
        halves = {
            branch: (out[Role(branch, "cond")], out.get(Role(branch, "uncond")))
            for branch in wanted
        }
        guided = {}
        for branch, (cond, uncond) in self.run.guidance(step, sigma, halves).items():
            name = CONDS[Role(branch, "cond")]
            guided[branch] = (
                cond
                if uncond is None
                else self.guider.guide(
                    cond, uncond, self.scale(branch), x[branch], sigma, options,
                    (name, "negative"),
                )
            )
        return guided

    def before_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor, options: dict
    ) -> Tensor:
        """Pull the target's cross-attention maps to the source's where a controller asks for it."""
        self.own = {}
        for guidance in self.run.map_guidances(step):
            if source is None:
                raise PlanError("XAttn-Guidance needs the source branch, which has ended")
            recorded = self.run.recorded_maps(step, guidance.weights, target)
            target = self.puller.pull(
                self, guidance, step, sigma, source, target, options, recorded
            )
        return target

    def learned(self, step: int, options: dict) -> dict:
        """Return options under which the trajectory's learned values of a step act."""
        learned, rule = self.trajectory.modulations, self.trajectory.value_rule
        if learned is None:
            return options
        changed = learned[step].to(self.guider.model_patcher.load_device)
        roles = [SOURCE_COND]
        if step in window_steps((0.0, rule.target), self.trajectory.steps):
            roles.append(TARGET_COND)
        return with_values(options, dict.fromkeys(roles, changed))

    def scale(self, branch: str) -> float:
        """Return a branch's guidance scale; a source that replays its inversion keeps its own.

        The layout branch is guided as the source is.
        """
        own = branch != "target" and self.replays
        return self.trajectory.guidance_scale if own else self.cfg

    def row(self, role: Role, x: Tensor, step: int) -> Rows:
        """Return what a role is evaluated on: its cond, or the trajectory's null embedding."""
        null, rule = self.trajectory.null_embeddings, self.trajectory.null_rule
        if null is None or role.half == "cond" or (role.branch == "target" and not rule.target):
            return Rows(role, CONDS[role], x)
        return Rows(role, rule.entry, x, null[step])

    def unguided_source(self, step: int, sigma: Tensor) -> bool:
        """Whether the source's null embedding is its own prompt, so that guidance cancels out."""
        null, rule = self.trajectory.null_embeddings, self.trajectory.null_rule
        if null is None or rule.entry != "source":
            return False
        if self.source_embedding is None:
            entry = single_entry("source", self.guider.conds["source"], sigma)
            self.source_embedding = entry["model_conds"]["c_crossattn"].cond.float().cpu()
        own = self.source_embedding
        return own.shape[1:] == null.shape[2:] and bool((null[step] == own).all())

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        """Blend as the controllers ask, then keep the source outside the user's mask."""
        target = self.run.after_step(step, sigma, source, target)
        if self.mask is not None and source is not None:
            target = source + self.mask.to(target) * (target - source)
        return target


def run_edit(
    model: Any,
    trajectory: Trajectory,
    positive: list,
    negative: list | None,
    *,
    cfg: float = 7.5,
    start_step: int = 0,
    mask: Tensor | None = None,
    reconstruct: bool = True,
) -> EditResult:
    """Edit: walk the trajectory down with the target prompt, the source beside it.

    positive: the target prompt; negative: of both branches (not needed at cfg 1).
    mask: "batch-or-1 height width" in [0, 1], 1 where the edit may happen.
    reconstruct: sample a source branch that is not pinned down to the end even where no
      controller reads it, so that the source output shows what the inversion lost.
    """
    facts = check_model(model, trajectory)
    check_conditioning("positive", positive)
    if trajectory.source is None:
        raise TrajectoryError("this trajectory carries no source conditioning; invert again")
    conds = {"source": trajectory.source, "positive": positive}
    if cfg != 1 or (replays(trajectory.solver) and trajectory.guidance_scale != 1):
        negative = trajectory.negative if negative is None else negative
        check_conditioning("negative", negative)
        conds["negative"] = negative
    plan = get_plan(model)
    run_facts = RunFacts(
        steps=trajectory.steps,
        start_step=start_step,
        height=trajectory.clean.shape[2],
        width=trajectory.clean.shape[3],
        images=trajectory.batch,
        sites=attention_sites(model) if plan.reads_attention else (),
        latents=trajectory.latents,
        halves=("cond",) if cfg == 1 else ("cond", "uncond"),
    )
    run = EditRun(run_facts, plan.prepare(run_facts), plan.store)
    if plan.store is not None:
        check_store(plan.store, trajectory, conds.get("negative"))
        run.check_store()
    latent_mask = None if mask is None else fit_mask(mask, trajectory.clean)
    needs_source = reconstruct or latent_mask is not None or run.blends
    last_read = max(run.last_source_step(), run.last_guided_step())
    source_until = trajectory.steps if needs_source else last_read + 1
    guider = RowGuider(model, conds, trajectory.sigmas)
    sampler = EditSampler(
        guider, trajectory, run, cfg=cfg, source_until=source_until, mask=latent_mask
    )
    started = time.perf_counter()
    edited = run_guider(guider, trajectory.clean, sampler, trajectory.sigmas.flip(0)[start_step:])
    if trajectory.source_rule.exact or sampler.source is None:
        source = trajectory.clean.clone()
    else:
        source = model.model.process_latent_out(sampler.source).to("cpu", torch.float32)
    report = {
        "seconds": time.perf_counter() - started,
        "row_forwards": guider.row_forwards,
        "model_calls": guider.calls,
        "steps": trajectory.steps - start_step,
        "source": "pinned" if trajectory.source_rule.pinned else "free",
        "prediction": facts.prediction,
        **sampler.puller.report(),
        **shared_layers(model, run),
        **guider.merging.report(),
    }
    acted = run.mask(latent_mask)
    if run.blends:
        report["blend_area"] = blend_area(acted)
    foregrounds = (to_image_size(model, mask) for mask in run.foregrounds())
    return EditResult(edited, source, to_image_size(model, acted), report, *foregrounds)


def shared_layers(model: Any, run: EditRun) -> dict[str, str]:
    """Return a report entry for self-attention that another pack replaces too, and warn."""
    owners = foreign_self(model.model_options, run)
    if not owners:
        return {}
    note = ", ".join(f"{name} ({layers} layers)" for name, layers in owners.items())
    log.warning("self-attention fed by controllers is also replaced by %s", note)
    return {"also_replaces_self_attention": note}


def blend_area(mask: Tensor) -> float:
    """Return the fraction of the picture that the blend let change; warn when it is nothing."""
    area = float(mask.mean())
    if area == 0:
        log.warning(
            "LocalBlend found no region, so the edit is the source; lower blend_threshold or "
            "choose other words"
        )
    return area


def to_image_size(model: Any, mask: Tensor) -> Tensor:
    """Enlarge a mask "batch height width" from the latent's to the image's size."""
    ratio = getattr(model.model.latent_format, "spatial_downscale_ratio", PIXELS_PER_LATENT)
    return F.interpolate(mask[:, None], scale_factor=ratio, mode="nearest")[:, 0]


def fit_mask(mask: Tensor, clean: Tensor) -> Tensor:
    """Resize a MASK to the latent, "batch-or-1 1 height width".

    Raises: LatentError when its batch does not fit, it is empty, or it selects nothing.
    """
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise LatentError(f"expected a mask [batch height width], got {list(mask.shape)}")
    if len(mask) not in (1, len(clean)):
        raise LatentError(
            f"the mask has {len(mask)} images but the trajectory {len(clean)}; give one or as many"
        )
    if not bool(mask.isfinite().all()) or float(mask.max()) <= 0:
        raise LatentError("the mask selects nothing (or holds NaN): the edit would change nothing")
    mask = F.interpolate(
        mask[:, None].clamp(0, 1), size=clean.shape[2:], mode="bilinear", antialias=True
    )
    return mask
