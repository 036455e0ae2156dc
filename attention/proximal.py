"""Proximal guidance (Han et al. 2023, arXiv:2306.05414) as a controller of the guidance step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from ..diffusion.proximal import MODES, edit_mask, pull, quantile_threshold, shrink
from .plan import Control, Halves, RunFacts


@dataclass(frozen=True, eq=False)
class ProximalGuidance:
    """What a Proximal-Guidance node asks for; frozen.

    quantile: of |eps_cond - eps_uncond| that becomes the threshold; threshold: a fixed one instead.
    both_rows: take the quantile over source and target as published (a source that is not
      evaluated counts as zero, which it is under negative-prompt inversion), or the target alone.
    rate: of the pull to the trajectory outside the mask at steps that start below `below_sigma`
      (0 pulls never). dilate: growth of the mask in latent pixels.
    """

    mode: str = "soft"
    quantile: float = 0.75
    threshold: float | None = None
    both_rows: bool = True
    dilate: int = 2
    rate: float = 0.0
    below_sigma: float = float("inf")

    name = "Proximal-Guidance"
    on_attention = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PlanError(f"unknown proximal mode {self.mode!r}; choose one of {MODES}")
        if not 0 <= self.quantile < 1 or (self.threshold is not None and self.threshold < 0):
            raise PlanError(
                f"the quantile must be in [0, 1) and the threshold at least 0, got {self.quantile} "
                f"and {self.threshold}; 0 leaves guidance as it is"
            )

    def __deepcopy__(self, memo: dict) -> "ProximalGuidance":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedProximalGuidance":
        if self.quantile == 0 and not self.threshold and self.rate == 0:
            raise PlanError(
                "Proximal-Guidance would do nothing: quantile, threshold and pull are all 0"
            )
        return PreparedProximalGuidance(self, facts)


class PreparedProximalGuidance(Control):
    """Proximal guidance in one run; keeps the mask of the current step."""

    name = ProximalGuidance.name

    def __init__(self, asked: ProximalGuidance, facts: RunFacts) -> None:
        self.asked, self.facts = asked, facts
        self.sigma: float | None = None
        self.step_mask: Tensor | None = None

    def guidance(self, step: int, sigma: Tensor, halves: Halves) -> Halves:
        """Shrink each branch's difference of eps = (x - denoised) / sigma, in that scale."""
        self.sigma, self.step_mask = float(sigma), None
        deltas = {
            branch: (uncond - cond) / sigma
            for branch, (cond, uncond) in halves.items()
            if uncond is not None
        }
        if "target" not in deltas:
            raise PlanError(
                "Proximal-Guidance acts on guidance, but cfg is 1; set the sampler's cfg higher"
            )
        threshold = self.threshold(deltas)
        changed = dict(halves)
        for branch, delta in deltas.items():
            shrunk = shrink(delta, threshold, self.asked.mode)
            uncond = halves[branch][1]
            changed[branch] = (uncond - sigma * shrunk, uncond)
            if branch == "target":
                self.step_mask = edit_mask(
                    delta, shrunk, threshold, self.asked.mode, self.asked.dilate
                )
        return changed

    def threshold(self, deltas: dict[str, Tensor]) -> Tensor:
        """Return this step's threshold per image, "batch 1 1 1"."""
        if self.asked.threshold is not None:
            return deltas["target"].new_full((len(deltas["target"]), 1, 1, 1), self.asked.threshold)
        counted = list(deltas.values()) if self.asked.both_rows else [deltas["target"]]
        silent = 1 if self.asked.both_rows and "source" not in deltas else 0
        return quantile_threshold(torch.stack(counted, dim=1), self.asked.quantile, silent)

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        """Pull the target to the trajectory where guidance did not act (inversion guidance)."""
        asked, latents = self.asked, self.facts.latents
        if asked.rate == 0 or latents is None or self.step_mask is None:
            return target
        if self.sigma is None or self.sigma >= asked.below_sigma:
            return target
        anchor = latents[self.facts.steps - step - 1].to(target)
        return pull(target, anchor, self.step_mask, asked.rate)
