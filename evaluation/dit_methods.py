"""DiT4Edit's pipeline in parts: two inversions, unified control against each part, merging."""

from __future__ import annotations

from ..attention.dit4edit import unified_control
from ..attention.patch_merge import PatchMerge
from ..diffusion.trajectory import Trajectory
from ..host.editing import with_controller
from ..host.inversion_dpm import invert_with_dpm_solver
from .workbench import Method, Outcome, Workbench


def dpm_solver(bench: Workbench) -> Trajectory:
    """Invert with DPM-Solver++ of second order, in as many steps as DDIM takes."""
    return bench.once("dpm-solver, all steps", lambda: invert_with_dpm_solver(
        bench.model, bench.source, bench.latent, steps=bench.settings.steps
    )[0])  # fmt: skip


def control(bench: Workbench, **parts: bool | float) -> tuple:
    """Return unified control's controllers under the settings, or some of its parts."""
    settings = bench.settings
    return unified_control(bench.prompts, **{
        "cross_replace": settings.cross, "switch": settings.self_,
        "cross_from": settings.cross_from, "self_from": settings.self_from, **parts,
    })  # fmt: skip


def free(invert) -> Method:
    """Return the method of an inversion whose source branch is sampled beside, as published."""
    return lambda bench: bench.edit(invert(bench), *control(bench), reconstruct=True)


def with_control(**parts: bool | float) -> Method:
    """Return the method of parts of the control, from DPM-Solver++, the source pinned."""

    def method(bench: Workbench) -> Outcome:
        return bench.edit(bench.pinned(dpm_solver(bench)), *control(bench, **parts))

    return method


def plain(bench: Workbench) -> Outcome:
    """Sample the target prompt from the inverted noise, with nothing that holds the source."""
    return bench.edit(dpm_solver(bench))


def merged(ratio: float) -> Method:
    """Return the whole pipeline with tokens merged, in the inversion too."""

    def method(bench: Workbench) -> Outcome:
        model = with_controller(bench.model, PatchMerge(ratio))
        trajectory = bench.once(f"dpm-solver, merged {ratio}", lambda: invert_with_dpm_solver(
            model, bench.source, bench.latent, steps=bench.settings.steps
        )[0])  # fmt: skip
        return bench.edit(bench.pinned(trajectory), *control(bench), model=model)

    return method


UNIFIED = "unified control"
EARLY = 0.2
"""A switch to content after a fifth of the steps, which the preset does without."""

DIT: dict[str, Method] = {
    "DDIM + unified control": free(Workbench.ddim),
    "DPM-Solver++ + unified control": free(dpm_solver),
    "no control": plain,
    "word maps alone": with_control(cross_from=0.0, structure=False, content=False),
    "content alone (MasaCtrl) from 0.2": with_control(
        cross_replace=0.0, structure=False, switch=EARLY
    ),
    "word maps, structure, content from 0.2": with_control(switch=EARLY),
    UNIFIED: with_control(),
    "unified, merge 0.5": merged(0.5),
    "unified, merge 0.8": merged(0.8),
}
