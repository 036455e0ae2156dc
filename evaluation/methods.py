"""Methods that the benches compare: short recipes over a workbench. Needs a ComfyUI."""

from __future__ import annotations

from ..attention.local_blend import LocalBlend
from ..attention.masactrl import MasaCtrl
from ..attention.plug_and_play import PlugAndPlay
from ..diffusion.trajectory import Trajectory
from .direction_methods import DIRECTIONS
from .dit_methods import DIT
from .inversion_methods import INVERSIONS, ROUND_TRIPS
from .workbench import Method, Outcome, Workbench

MASACTRL_START = 0.08  # of the steps: the published step 4 of 50


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
    return bench.edit(bench.ddim(), bench.p2p())


def direct_p2p(bench: Workbench) -> Outcome:
    """Direct Inversion + Prompt-to-Prompt."""
    return bench.edit(bench.pinned(bench.ddim()), bench.p2p())


def p2p_blend(bench: Workbench) -> Outcome:
    """Prompt-to-Prompt + LocalBlend on the object that changes, from a source that drifts."""
    return blended(bench, bench.ddim())


def direct_p2p_blend(bench: Workbench) -> Outcome:
    """Direct Inversion + Prompt-to-Prompt + LocalBlend on the object that changes."""
    return blended(bench, bench.pinned(bench.ddim()))


def blended(bench: Workbench, trajectory: Trajectory) -> Outcome:
    """Edit under Prompt-to-Prompt with LocalBlend, once for all methods that ask for it."""
    name = ("LocalBlend", trajectory.source_rule.pinned, bench.settings)
    blend = object_blend(bench)
    return bench.once(name, lambda: bench.edit(trajectory, bench.p2p(blend=blend)))


def pasted_back(method: Method) -> Method:
    """Return a method whose edits are pasted back into the photo."""
    return lambda bench: method(bench)._replace(pasted=True)


def object_blend(bench: Workbench) -> LocalBlend:
    """Return the LocalBlend that names the object that changes, before and after."""
    before, after = bench.phrases()
    return LocalBlend(
        source=(before,) if before else (),
        target=(after,) if after else (),
        threshold=bench.settings.blend,
    )


def masactrl(bench: Workbench) -> Outcome:
    """MasaCtrl from a source branch that drifts."""
    return bench.edit(bench.ddim(), MasaCtrl(MASACTRL_START), reconstruct=True)


def direct_masactrl(bench: Workbench) -> Outcome:
    """Direct Inversion + MasaCtrl."""
    return bench.edit(bench.pinned(bench.ddim()), MasaCtrl(MASACTRL_START))


def plug_and_play(bench: Workbench) -> Outcome:
    """Plug-and-Play from a source branch that drifts."""
    return bench.edit(bench.ddim(), PlugAndPlay(), reconstruct=True)


def direct_plug_and_play(bench: Workbench) -> Outcome:
    """Direct Inversion + Plug-and-Play."""
    return bench.edit(bench.pinned(bench.ddim()), PlugAndPlay())


METHODS: dict[str, Method] = {
    "autoencoder, source": round_trip_source,
    "autoencoder, exact target": round_trip_target,
    "plain DDIM": plain_ddim,
    "P2P": p2p,
    "DirectInversion + P2P": direct_p2p,
    "P2P + LocalBlend": p2p_blend,
    "DirectInversion + P2P + LocalBlend": direct_p2p_blend,
    "P2P + LocalBlend, pasted back": pasted_back(p2p_blend),
    "DirectInversion + P2P + LocalBlend, pasted back": pasted_back(direct_p2p_blend),
    "MasaCtrl": masactrl,
    "DirectInversion + MasaCtrl": direct_masactrl,
    "PnP": plug_and_play,
    "DirectInversion + PnP": direct_plug_and_play,
    **INVERSIONS,
    **DIRECTIONS,
    **DIT,
    **ROUND_TRIPS,
}
