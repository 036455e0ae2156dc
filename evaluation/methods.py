"""Methods that the benches compare: short recipes over a workbench. Needs a ComfyUI."""

from __future__ import annotations

from .workbench import Method, Outcome, Workbench


def round_trip_source(bench: Workbench) -> Outcome:
    """Encode and decode the source: the most that can be kept."""
    samples = bench.latent["samples"]
    return Outcome(samples, samples, (0, 0), 0.0)


def round_trip_target(bench: Workbench) -> Outcome:
    """Encode and decode the exact target: the best edit that this autoencoder can show."""
    samples = bench.encode_pictures([case.target_image for case in bench.cases])["samples"]
    return Outcome(samples, bench.latent["samples"], (0, 0), 0.0)


def plain_ddim(bench: Workbench) -> Outcome:
    """Sample the target prompt from the inverted noise, with nothing that holds the source."""
    return bench.edit(bench.ddim())


def p2p(bench: Workbench) -> Outcome:
    """Prompt-to-Prompt from a source branch that drifts as DDIM inversion lets it."""
    return bench.edit(bench.ddim(), bench.p2p(), reconstruct=True)


def direct_p2p(bench: Workbench) -> Outcome:
    """Direct Inversion + Prompt-to-Prompt."""
    return bench.edit(bench.pinned(bench.ddim()), bench.p2p())


METHODS: dict[str, Method] = {
    "autoencoder, source": round_trip_source,
    "autoencoder, exact target": round_trip_target,
    "plain DDIM": plain_ddim,
    "P2P": p2p,
    "DirectInversion + P2P": direct_p2p,
}
