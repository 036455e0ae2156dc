"""EDICT: two coupled latents whose steps undo each other exactly.

The trajectory's states are the first latent; the second travels in its extras.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ScheduleError
from .inversion import InversionState, to_level
from .schedule import leading_timesteps
from .steps import Denoise, rescale, to_d

Pair = tuple[Tensor, Tensor]


def edict_sigmas(table: Tensor, steps: int, strength: float) -> Tensor:
    """Return the published grid of EDICT, increasing: labels 20, ..., 780 for 50 steps at 0.8.

    table: "train_steps", the model's own noise levels. EDICT's labels start at 0, whose step
    goes from abar[0] to abar[0] and moves nothing; it is left out (the solver mixes once more at
    the end instead, as that step would).
    Raises: ScheduleError if nothing is left to walk.
    """
    labels = leading_timesteps(steps, len(table), offset=0)[: int(steps * strength)][1:]
    if not labels:
        raise ScheduleError(
            f"{steps} steps at strength {strength:g} leave no step to walk; use more of either"
        )
    return torch.cat([table[:1], table[torch.tensor(labels)]])


def mix(x: Tensor, y: Tensor, weight: float) -> Pair:
    """Pull both latents together after a step (Wallace et al., Eq. 14)."""
    x = weight * x + (1 - weight) * y
    return x, weight * y + (1 - weight) * x


def unmix(x: Tensor, y: Tensor, weight: float) -> Pair:
    """Undo `mix` (Wallace et al., Eq. 15)."""
    y = (y - (1 - weight) * x) / weight
    return (x - (1 - weight) * y) / weight, y


def relabel(x: Tensor, sigma_next: Tensor, sigma: Tensor, flow: bool) -> Tensor:
    """Return a latent that already stepped to sigma_next as the network sees it at sigma."""
    return x if flow else rescale(x, sigma_next, sigma)


def check_weight(weight: float) -> None:
    """Raise ScheduleError for a mixing weight that cannot be undone."""
    if not 0.5 < weight <= 1:
        raise ScheduleError(f"the mixing weight must be above 0.5 and at most 1, got {weight}")


def invert_edict(
    denoise: Denoise,
    clean: Tensor,
    sigmas: Tensor,
    *,
    weight: float = 0.93,
    double: bool = False,
    flow: bool = False,
) -> Iterator[InversionState]:
    """Yield every state from clean to noisy; the second latent is kept as "second".

    clean: "batch channels height width"; sigmas: "steps+1" increasing. double: float64 latents
    (the first is then kept as "first" too); the network runs in its own precision.
    Source: Wallace et al. 2022 (arXiv:2211.12446), Eqs. 12-16, with x = z / sqrt(abar) for z.
    The pairs are the paper's; which latent steps first alternates, the noisiest step begins with
    the first.
    Test: tests/diffusion/test_edict.py::test_sampling_undoes_the_inversion
    """
    check_weight(weight)
    if double:
        clean, sigmas = clean.double(), sigmas.double()
    x = to_level(clean, sigmas[0], flow)
    pair = [x, x]

    def state(index: int) -> InversionState:
        kept = [("first", pair[0])] if double else []
        return InversionState(
            index, sigmas[index], pair[0], 0.0, kept=(*kept, ("second", pair[1]))
        )

    yield state(0)
    steps = len(sigmas) - 1
    for index in range(1, steps + 1):
        sigma_next, sigma = sigmas[index - 1], sigmas[index]
        pair = list(unmix(*pair, weight))
        early = (steps - index) % 2
        for moved in (1 - early, early):
            other = pair[1 - moved]
            # the latent that stepped first still stands at the next level
            asked = relabel(other, sigma_next, sigma, flow) if moved != early else other
            d = to_d(asked, denoise(asked, sigma), sigma)
            pair[moved] = pair[moved] - (sigma_next - sigma) * d
        yield state(index)


class Edict:
    """Sampling steps on coupled latents; the second of each branch lives in the run's memory.

    Source: Wallace et al. 2022 (arXiv:2211.12446), Eqs. 12-14. A target that was blended after a
    step moves its second latent by as much.
    """

    replays = True
    needs = ("second", "mix")

    def step(
        self,
        branches: Mapping[str, Tensor],
        denoise: Any,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return the stepped first latents and the predictions of the first evaluation."""
        step, flow, weight = memory["step"], memory["flow"], float(memory["mix"])
        sigma, sigma_next = (s.to(memory["second"]) for s in (sigma, sigma_next))
        pairs = {name: list(self.pair(name, x, memory)) for name, x in branches.items()}
        early = step % 2
        first = denoise({name: pair[1 - early] for name, pair in pairs.items()}, sigma)
        after = self.known(memory, memory["steps"] - step - 1)
        asked = {}
        for name, pair in pairs.items():
            if name in first:
                d = to_d(pair[1 - early], first[name], sigma)
                pair[early] = pair[early] + (sigma_next - sigma) * d
            else:  # a pinned source: where its inversion was at this half step
                pair[early] = unmix(*after, weight)[early]
            asked[name] = relabel(pair[early], sigma_next, sigma, flow)
        second = denoise(asked, sigma)
        stepped = {}
        for name, data in second.items():
            pair = pairs[name]
            d = to_d(asked[name], data, sigma)
            pair[1 - early] = pair[1 - early] + (sigma_next - sigma) * d
            x, y = mix(*pair, weight)
            if step == memory["steps"] - 1:
                x, y = mix(x, y, weight)  # the published step at label 0, see `edict_sigmas`
            memory.setdefault("pairs", {})[name] = (x, y)
            stepped[name] = x
        return stepped, first

    def pair(self, name: str, given: Tensor, memory: dict[str, Any]) -> Pair:
        """Return both latents of a branch before a step; `given` is what the walk holds."""
        known = self.known(memory, memory["steps"] - memory["step"])
        x, y = memory.get("pairs", {}).get(name, known)
        if torch.equal(x.to(given), given):
            return x, y
        return given.to(x), y + (given.to(x) - x)

    def known(self, memory: dict[str, Any], index: int) -> Pair:
        """Return the inversion's pair at a level, in the precision it was made in."""
        second = memory["second"][index]
        return memory.get("first", memory["latents"])[index].to(second), second
