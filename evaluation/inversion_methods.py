"""Every inversion under Prompt-to-Prompt, and its round trip: recipes over a workbench."""

from __future__ import annotations

from ..diffusion.trajectory import Trajectory
from ..host.inversion_dpm import invert_with_dpm_solver
from ..host.inversion_exact import invert_with_edict, invert_with_noises, invert_without_model
from ..host.negative_prompt import invert_negative_prompt, with_proximal_guidance
from ..host.null_text import optimise
from .workbench import Method, Outcome, Workbench

PROXIMAL = {"mode": "soft", "quantile": 0.75, "both_rows": True, "rate": 1.0, "pull_until": 0.4,
            "dilate": 2}  # fmt: skip
EDIT_FRIENDLY_SKIP = 0.24


def null_text(bench: Workbench) -> Trajectory:
    """Optimise null embeddings for the cfg of the edit, as published."""
    cfg = bench.settings.cfg
    return bench.once(f"null-text {cfg}", lambda: optimise(
        bench.model, bench.ddim(), bench.negative, cfg=cfg
    )[0])  # fmt: skip


def negative_prompt(bench: Workbench) -> Trajectory:
    """Use the source prompt as the unconditional one."""
    return invert_negative_prompt(bench.ddim(), bench.negative)


def refined(bench: Workbench) -> Trajectory:
    """Invert with DDIM, five fixed-point iterations a step."""
    return bench.once("refined", lambda: bench.invert(refine=5))


def with_p2p(invert) -> Method:
    """Return the method that puts Prompt-to-Prompt on an inversion whose source is sampled."""

    def method(bench: Workbench) -> Outcome:
        return bench.edit(invert(bench), bench.p2p(), reconstruct=True)

    return method


def round_trip(invert) -> Method:
    """Return the method that samples back with the source prompt at cfg 1."""
    return lambda bench: bench.retrace(invert(bench))


def proximal_p2p(bench: Workbench) -> Outcome:
    """Negative-prompt inversion + proximal guidance + Prompt-to-Prompt."""
    model = with_proximal_guidance(bench.model, **PROXIMAL)
    return bench.edit(negative_prompt(bench), bench.p2p(), model=model, reconstruct=True)


def ddim(bench: Workbench) -> Trajectory:
    """Invert with DDIM."""
    return bench.ddim()


def dpm_solver(bench: Workbench) -> Trajectory:
    """Invert with DPM-Solver++ of second order, three fifths of the steps."""
    steps = round(0.6 * bench.settings.steps)
    return bench.once("dpm-solver", lambda: invert_with_dpm_solver(
        bench.model, bench.source, bench.latent, steps=steps
    )[0])  # fmt: skip


def edict(bench: Workbench) -> Trajectory:
    """Invert with EDICT, at the cfg with which it is undone."""
    settings = bench.settings
    return bench.once(f"edict {settings.cfg}", lambda: invert_with_edict(
        bench.model, bench.source, bench.latent, steps=settings.steps, cfg=settings.cfg,
        negative=bench.negative,
    )[0])  # fmt: skip


def edict_plain(bench: Workbench) -> Trajectory:
    """Invert with EDICT at cfg 1."""
    return bench.once("edict 1", lambda: invert_with_edict(
        bench.model, bench.source, bench.latent, steps=bench.settings.steps, cfg=1.0
    )[0])  # fmt: skip


def edit_friendly(bench: Workbench) -> Trajectory:
    """Extract edit-friendly DDPM noises."""
    return bench.once("edit-friendly", lambda: invert_with_noises(
        bench.model, bench.source, bench.latent, steps=bench.settings.steps
    )[0])  # fmt: skip


def edit_friendly_p2p(bench: Workbench) -> Outcome:
    """Edit-friendly DDPM + Prompt-to-Prompt, without the first 12 of 50 steps as published."""
    skipped = int(EDIT_FRIENDLY_SKIP * bench.settings.steps)
    return bench.edit(edit_friendly(bench), bench.p2p(), start_step=skipped, reconstruct=True)


def virtual(bench: Workbench) -> Trajectory:
    """Invert virtually (InfEdit), about a quarter of the steps."""
    steps = round(0.24 * bench.settings.steps)
    return bench.once("virtual", lambda: invert_without_model(
        bench.model, bench.source, bench.latent, steps=steps
    )[0])  # fmt: skip


def direct_dpm_solver_p2p(bench: Workbench) -> Outcome:
    """DPM-Solver++ with Direct Inversion + Prompt-to-Prompt."""
    return bench.edit(bench.pinned(dpm_solver(bench)), bench.p2p())


INVERSIONS: dict[str, Method] = {
    "DDIM + P2P": with_p2p(ddim),
    "NTI + P2P": with_p2p(null_text),
    "NPI + P2P": with_p2p(negative_prompt),
    "ProxNPI + P2P": proximal_p2p,
    "DPM-Solver++ (30) + P2P": with_p2p(dpm_solver),
    "DPM-Solver++ (30) + DirectInversion + P2P": direct_dpm_solver_p2p,
    "EDICT + P2P": with_p2p(edict),
    "edit-friendly DDPM + P2P": edit_friendly_p2p,
    "InfEdit (12) + P2P": with_p2p(virtual),
}

ROUND_TRIPS: dict[str, Method] = {
    "DDIM (50)": round_trip(ddim),
    "DDIM (50), refined 5 times a step": round_trip(refined),
    "DPM-Solver++ (30)": round_trip(dpm_solver),
    "EDICT (40 of 50)": round_trip(edict_plain),
    "edit-friendly DDPM (50)": round_trip(edit_friendly),
}
