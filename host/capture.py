"""Attention-Capture's run: the source's attention over a whole trajectory, several steps a pass."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import folder_paths
import latent_preview
import torch
from torch import Tensor

from ..attention.plan import RunFacts
from ..attention.plug_and_play import injected_block
from ..attention.recording import RecordingRun
from ..attention.rows import SOURCE_COND, SOURCE_UNCOND, RowLayout
from ..attention.sites import ResidualBlock, Site, select_sites
from ..attention.store import (
    AttentionStore,
    FeatureShape,
    Recorder,
    SiteShape,
    StoreSpec,
    fingerprint,
    show_bytes,
)
from ..attention.windows import Window, check_window, window_steps
from ..diffusion.errors import BlockSelectionError, HostError, PlanError, TrajectoryError
from ..diffusion.trajectory import Trajectory
from .attach import attach_unet, residual_hooks, residual_layer
from .conditioning import check_conditioning
from .guider import RowGuider, Rows, check_interrupted
from .model import attention_sites, check_model

ROWS_PER_PASS = 8
"""Most rows of one model call; less where memory is short."""

MEGABYTE = 2**20

EVALUATED_AT_STATES = ("euler", "dpmpp_1", "dpmpp_2m", "ddpm")
"""Solvers that ask for the source's prediction at the trajectory's states and nowhere else."""


class CaptureSampler(comfy.samplers.Sampler):
    """Evaluates the source's rows at the wanted steps, in groups, with recording hooks."""

    def __init__(
        self, guider: RowGuider, trajectory: Trajectory, run: RecordingRun, per_pass: int
    ) -> None:
        self.guider, self.trajectory, self.run, self.per_pass = guider, trajectory, run, per_pass

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False):
        options = attach_unet(extra_args["model_options"], self.run)
        steps = self.run.recorder.spec.steps
        with residual_hooks(self.guider.inner_model.diffusion_model, self.run):
            for start in range(0, len(steps), self.per_pass):
                check_interrupted()
                self.evaluate(steps[start : start + self.per_pass], noise.device, options)
                if callback is not None:
                    done = min(start + self.per_pass, len(steps))
                    callback(done - 1, noise, noise, len(steps))
        return noise

    def evaluate(self, steps: Sequence[int], device: torch.device, options: dict) -> None:
        """Run one pass over several steps; a role's rows are steps x images."""
        trajectory, spec = self.trajectory, self.run.recorder.spec
        levels = [trajectory.steps - step for step in steps]
        x = trajectory.latents[levels].flatten(0, 1).to(device)
        sigmas = trajectory.sigmas[levels].to(device).repeat_interleave(spec.images)
        rows = [Rows(SOURCE_COND, "source", x)]
        if "uncond" in spec.halves:
            rows.append(self.uncond_rows(x, steps))
        self.run.begin_steps(steps, RowLayout(tuple(row.role for row in rows), len(x)))
        self.guider.denoise_rows(rows, sigmas, options)
        self.run.end()

    def uncond_rows(self, x: Tensor, steps: Sequence[int]) -> Rows:
        """Return the unconditional half: the negative prompt or the trajectory's embeddings."""
        null, rule = self.trajectory.null_embeddings, self.trajectory.null_rule
        if null is None:
            return Rows(SOURCE_UNCOND, "negative", x)
        images = self.trajectory.batch
        embeddings = null[list(steps)].expand(-1, images, -1, -1).flatten(0, 1)
        return Rows(SOURCE_UNCOND, rule.entry, x, embeddings)


def capture_attention(
    model: Any,
    trajectory: Trajectory,
    *,
    kind: str = "all",
    layers: str = "",
    window: Window = (0.0, 1.0),
    dtype: str = "fp16",
    place: str = "cpu",
    budget_mb: float = 4096,
    negative: list | None = None,
    folder: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> tuple[AttentionStore, dict[str, Any]]:
    """Record the source's attention over a trajectory; return the store and a report.

    kind: "all", "self" or "cross"; layers: see `select_sites`. window: steps, [start, end) as
      fractions, 0 the noisiest. negative: the negative prompt, if the unconditional half is
      wanted too. folder: of the file when place is "disk". announce: is told the estimate.
    Raises: PlanError before any work if the store does not fit its budget.
    """
    spec = capture_spec(
        model, trajectory, kind=kind, layers=layers, window=window, dtype=dtype, negative=negative
    )
    if announce is not None:
        announce(f"the attention store will take {show_bytes(spec.size_bytes)} on {place}")
    spec.check_budget(int(budget_mb * MEGABYTE), place)
    conds = {"source": trajectory.source}
    if negative is not None:
        conds["negative"] = negative
    guider = RowGuider(model, conds)
    recorder = Recorder(spec, place, device=model.load_device, folder=folder)
    facts = RunFacts(
        steps=trajectory.steps,
        start_step=0,
        height=spec.height,
        width=spec.width,
        images=spec.images,
        sites=attention_sites(model),
    )
    per_pass = steps_per_pass(model, trajectory, len(spec.halves))
    sampler = CaptureSampler(guider, trajectory, RecordingRun(facts, recorder), per_pass)
    started = time.perf_counter()
    callback = latent_preview.prepare_callback(model, len(spec.steps))
    with torch.no_grad():
        guider.sample(
            torch.zeros_like(trajectory.clean), trajectory.clean, sampler,
            trajectory.sigmas.flip(0), callback=callback, disable_pbar=True,
        )
    store = recorder.finish()
    report = {
        "megabytes": store.size_bytes / MEGABYTE,
        "place": place,
        "dtype": dtype,
        "layers": len(spec.sites),
        "steps": len(spec.steps),
        "steps_per_pass": per_pass,
        "row_forwards": guider.row_forwards,
        "seconds": time.perf_counter() - started,
    }
    return store, report


def temporary_folder() -> str:
    """Return the host's folder for temporary files, which it empties at its start and end."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    return folder


def capture_spec(
    model: Any,
    trajectory: Trajectory,
    *,
    kind: str = "all",
    layers: str = "",
    window: Window = (0.0, 1.0),
    dtype: str = "fp16",
    negative: list | None = None,
) -> StoreSpec:
    """Say what a capture would hold, and so its size, without running the model."""
    check_model(model, trajectory)
    if trajectory.source is None:
        raise TrajectoryError("this trajectory carries no source conditioning; invert again")
    check_conditioning("source", trajectory.source)
    if negative is not None:
        check_conditioning("negative", negative)
    steps = window_steps(check_window("steps", window), trajectory.steps)
    if not steps:
        raise PlanError(
            f"the window {window[0]} to {window[1]} holds none of the trajectory's "
            f"{trajectory.steps} steps; widen it"
        )
    shapes = site_shapes(model)
    sites = select_sites(tuple(shapes), kind, layers)
    return StoreSpec(
        trajectory=source_fingerprint(trajectory),
        negative="" if negative is None else negative_fingerprint(trajectory, negative),
        steps=tuple(steps),
        total_steps=trajectory.steps,
        images=trajectory.batch,
        height=trajectory.clean.shape[2],
        width=trajectory.clean.shape[3],
        sites=tuple((site, shapes[site]) for site in sites),
        halves=("cond",) if negative is None else ("cond", "uncond"),
        tokens=int(trajectory.source[0][0].shape[1]),
        dtype=dtype,
        features=injected_feature(model, sites) if kind == "all" else (),
    )


def injected_feature(
    model: Any, sites: Sequence[Site]
) -> tuple[tuple[ResidualBlock, FeatureShape], ...]:
    """Return the residual block that Plug-and-Play injects, if its layers are among the sites."""
    try:
        block = injected_block(attention_sites(model))
    except BlockSelectionError:
        return ()
    beside = [site for site in sites if (site.stage, site.index) == (block.stage, block.index)]
    if not beside:
        return ()
    layer = residual_layer(model.get_model_object("diffusion_model"), block)
    return ((block, FeatureShape(int(layer.out_channels), beside[0].downsample)),)


def site_shapes(model: Any) -> dict[Site, SiteShape]:
    """Return the widths of a UNet's attention layers, read from the live modules."""
    network = model.get_model_object("diffusion_model")
    shapes = {}
    for site in attention_sites(model):
        if site.stage == "middle":
            layers = network.middle_block
        else:
            layers = getattr(network, f"{site.stage}_blocks")[site.index]
        stack = next(layer for layer in layers if hasattr(layer, "transformer_blocks"))
        block = stack.transformer_blocks[site.sub_index]
        layer = block.attn1 if site.kind == "self" else block.attn2
        width = layer.to_q.in_features if site.kind == "self" else layer.to_q.out_features
        shapes[site] = SiteShape(int(width), int(layer.heads))
    return shapes


def steps_per_pass(model: Any, trajectory: Trajectory, halves: int) -> int:
    """Return how many steps fit one model call, at least one."""
    images, *shape = trajectory.clean.shape
    free = comfy.model_management.get_free_memory(model.load_device)
    steps = max(ROWS_PER_PASS // (images * halves), 1)
    while steps > 1:
        # the host's own estimate, with half as much again as it asks for when it batches conds
        if model.model.memory_required([steps * images * halves, *shape]) * 1.5 < free:
            break
        steps -= 1
    return steps


def conditioning_tensors(conditioning: list) -> list[Tensor]:
    """Return every tensor of a CONDITIONING, in order."""
    found: list[Tensor] = []
    for entry in conditioning:
        found.append(entry[0])
        extras = entry[1] if len(entry) > 1 else {}
        found += [extras[key] for key in sorted(extras) if isinstance(extras[key], Tensor)]
    return found


def source_fingerprint(trajectory: Trajectory) -> str:
    """Return the name of a trajectory's states, levels and source prompt."""
    prompt = conditioning_tensors(trajectory.source)
    return fingerprint([trajectory.latents, trajectory.sigmas, *prompt])


def negative_fingerprint(trajectory: Trajectory, negative: list) -> str:
    """Return the name of what the source's unconditional half is evaluated with."""
    if trajectory.null_embeddings is not None:
        return fingerprint([trajectory.null_embeddings])
    return fingerprint(conditioning_tensors(negative))


def check_store(store: AttentionStore, trajectory: Trajectory, negative: list | None) -> None:
    """Refuse a store that does not stand for this edit's source branch.

    Raises: TrajectoryError for a source that is not pinned or another trajectory, PlanError for
    another negative prompt, HostError for a solver that looks between the states.
    """
    if not trajectory.source_rule.exact:
        raise TrajectoryError(
            "recorded attention is that of a source pinned to its trajectory: put "
            "Invert-DirectInversion (scale 1, interval 1) before the Edit-Sampler, or disconnect "
            "the controller's attention input"
        )
    if trajectory.solver not in EVALUATED_AT_STATES:
        raise HostError(
            f"the solver {trajectory.solver!r} asks the model between the trajectory's states, "
            "which an attention store does not hold; disconnect the controller's attention input"
        )
    if store.spec.trajectory != source_fingerprint(trajectory):
        raise TrajectoryError(
            "this attention was captured from another trajectory (other states, noise levels or "
            "source prompt); capture it again from this one"
        )
    if negative is None or "uncond" not in store.spec.halves:
        return
    if store.spec.negative != negative_fingerprint(trajectory, negative):
        raise PlanError(
            "this attention was captured with another negative prompt than the Edit-Sampler's; "
            "use the same one, or capture without one if no controller needs that half"
        )
