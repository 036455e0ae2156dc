"""Every inversion under Prompt-to-Prompt, and its round trip: recipes over a workbench."""

from __future__ import annotations

from ..diffusion.trajectory import Trajectory
from ..host.negative_prompt import invert_negative_prompt, with_proximal_guidance
from ..host.null_text import optimise
from .workbench import Method, Outcome, Workbench

PROXIMAL = {"mode": "soft", "quantile": 0.75, "both_rows": True, "rate": 1.0, "pull_until": 0.4,
            "dilate": 2}  # fmt: skip


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


INVERSIONS: dict[str, Method] = {
    "DDIM + P2P": with_p2p(ddim),
    "NTI + P2P": with_p2p(null_text),
    "NPI + P2P": with_p2p(negative_prompt),
    "ProxNPI + P2P": proximal_p2p,
}

ROUND_TRIPS: dict[str, Method] = {
    "DDIM (50)": round_trip(ddim),
    "DDIM (50), refined 5 times a step": round_trip(refined),
}
