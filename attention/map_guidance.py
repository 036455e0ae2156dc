"""pix2pix-zero's cross-attention guidance: how far the target's maps are from the source's.

The only place where whole cross-attention maps are made, for their gradient is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.errors import DivergenceError, PlanError
from .plan import Control, RunFacts
from .sites import Site, select_sites
from .windows import window_steps

REFERENCE_LAYERS = 16
"""Cross-attention layers of SD1.5, for which the published amount of 0.1 was chosen."""

PUBLISHED_SHARE = (5 * 64**2 + 5 * 32**2 + 5 * 16**2 + 8**2) / (16 * 64**2)
"""Image tokens of SD1.5's layers at 512 pixels over those of as many layers of full size: keeps the
normalised loss as large as the published one there."""

LARGEST_STEP = 1.0
"""A step longer than the latent itself (in RMS) is a diverging run."""


class MapGuidance(NamedTuple):
    """What guidance does at one step.

    amount: length of the step along the gradient, for the variance-preserving latent.
    weights: by site, the factor on its part of the loss. published: see `AttentionGuidance`.
    """

    amount: float
    weights: dict[Site, float]
    published: bool
    checkpointing: str


@dataclass(frozen=True, eq=False)
class AttentionGuidance:
    """What an XAttn-Guidance node asks for; frozen.

    amount: 0.1 is the paper's for photos. until: guided fraction of the steps, from the noisy end.
    layers: as in `select_sites`, empty for all cross-attention layers. normalise: weigh layers
      alike whatever their resolution and number, so that one amount fits all sizes and models.
    published: the loss is over the unconditional and the conditional row, each with a latent of its
      own; only the unconditional row's goes on, the other is used for this step's prediction.
      Otherwise the loss is on the conditional row and both rows share the guided latent.
    """

    amount: float = 0.1
    until: float = 1.0
    layers: str = ""
    normalise: bool = True
    published: bool = False
    checkpointing: str = "auto"

    name = "XAttn-Guidance"

    def __deepcopy__(self, memo: dict) -> "AttentionGuidance":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedAttentionGuidance":
        """Resolve steps and layers. Raises: PlanError, BlockSelectionError."""
        steps = window_steps((0.0, self.until), facts.steps)
        if self.amount <= 0 or steps.stop <= facts.start_step:
            raise PlanError(
                "XAttn-Guidance would do nothing: its amount is 0 or its window covers no step "
                f"that is run ({facts.start_step} to {facts.steps - 1}); raise amount or until"
            )
        sites = select_sites(facts.sites, "cross", self.layers)
        weights = {site: self.weight(site, facts, len(sites)) for site in sites}
        return PreparedAttentionGuidance(self, steps, weights)

    def weight(self, site: Site, facts: RunFacts, layers: int) -> float:
        """Return a layer's factor: 1 as published, or alike for every resolution and model."""
        if self.published or not self.normalise:
            return 1.0
        pixels_a_token = facts.latent_tokens / facts.tokens(site)
        return PUBLISHED_SHARE * pixels_a_token * REFERENCE_LAYERS / layers


class PreparedAttentionGuidance(Control):
    """Cross-attention guidance resolved for one run."""

    name = AttentionGuidance.name

    def __init__(
        self, asked: AttentionGuidance, steps: range, weights: dict[Site, float]
    ) -> None:
        self.asked, self.steps, self.weights = asked, steps, weights

    def map_guidance(self, step: int) -> MapGuidance | None:
        if step not in self.steps:
            return None
        asked = self.asked
        return MapGuidance(asked.amount, self.weights, asked.published, asked.checkpointing)


def cross_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Return the attention map "rows heads queries keys", at least in float32.

    q: "rows queries heads*dim"; k: "rows keys heads*dim".
    """
    rows, queries, width = q.shape
    dim = width // heads
    precise = torch.promote_types(q.dtype, torch.float32)
    query = q.to(precise).reshape(rows, queries, heads, dim).transpose(1, 2)
    key = k.to(precise).reshape(rows, -1, heads, dim).transpose(1, 2)
    return (query @ key.transpose(2, 3) * dim**-0.5).softmax(-1)


def map_distance(found: Tensor, wanted: Tensor, images: int) -> Tensor:
    """Return the squared distance of maps per image, "images".

    found, wanted: "rows heads queries keys", rows = roles x images, roles outermost. Summed over
    queries and keys, mean over roles and heads: the published reduction, taken image by image.
    Source: Parmar et al. 2023 (arXiv:2302.03027), Eq. 5.
    Raises: PlanError when the prompts have different numbers of tokens.
    """
    if found.shape != wanted.shape:
        raise PlanError(
            f"source and target maps differ in shape ({list(wanted.shape)} and "
            f"{list(found.shape)}): encode both prompts with the same CLIP at similar lengths"
        )
    squares = (found - wanted).square().sum((2, 3)).mean(1)  # [rows]
    return squares.reshape(-1, images).mean(0)


def check_step(change: Tensor, x: Tensor, step: int) -> None:
    """Raise DivergenceError if a guidance step is not finite or longer than the latent."""
    length, own = float(change.double().square().mean()), float(x.double().square().mean())
    if not length <= LARGEST_STEP**2 * own:  # catches NaN too
        raise DivergenceError(
            f"XAttn-Guidance diverges at step {step + 1}: its move has an RMS of "
            f"{length**0.5:.3g}, the latent {own**0.5:.3g}; lower the amount (Stable Diffusion 2 "
            "needs about 0.01), or end it earlier with 'until'"
        )


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the layers' losses, "images"."""
    return torch.stack(list(parts)).sum(0)
