"""LayoutBlend: InfEdit's local blends of target, layout branch and source, by words of the target.

Beside LocalBlend, which knows two branches and one region, this keeps a region of its own for
words that may change and one for words that must stay.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import PlanError, TokenMapError
from .alignment import TokenMap
from .local_blend import READ_AT
from .plan import RunFacts
from .rules import Probe
from .sites import Site, nearest_grid
from .tokens import TokenizedPrompt

NOISE_FLOOR = 0.15
"""The edit's threshold is at least this over sqrt(abar): at high noise nothing is let through."""


@dataclass(frozen=True)
class LayoutBlend:
    """Which words of the target may change the picture, and which must stay; frozen.

    edit: outside their region the layout branch is taken. keep: inside their region the source
    is. Thresholds are of a map divided by its maximum, [0, 1).
    """

    edit: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    edit_threshold: float = 0.55
    keep_threshold: float = 0.6

    def __post_init__(self) -> None:
        if not self.edit and not self.keep:
            raise TokenMapError(
                "LayoutBlend needs a word of the target that may change or that must stay; name "
                "one, or leave both fields empty"
            )
        for name in ("edit_threshold", "keep_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def prepare(
        self, target: TokenizedPrompt, token_map: TokenMap, facts: RunFacts
    ) -> "PreparedLayoutBlend":
        """Resolve words and layers for one run.

        Raises: TokenMapError for a word that is not in the target, PlanError without layers.
        """
        sites = nearest_grid(facts.sites, READ_AT)
        if not sites:
            raise PlanError("LayoutBlend needs cross-attention layers, which this model lacks")
        edit, keep = (
            {token for word in words for token in target.span(word)}
            for words in (self.edit, self.keep)
        )
        return PreparedLayoutBlend(self, edit, keep, token_map, sites, facts)


def make_layout_blend(
    edit: tuple[str, ...], keep: tuple[str, ...], edit_threshold: float, keep_threshold: float
) -> LayoutBlend | None:
    """Return a LayoutBlend, or None when no word is named at all."""
    return LayoutBlend(edit, keep, edit_threshold, keep_threshold) if edit or keep else None


class PreparedLayoutBlend:
    """A LayoutBlend resolved for one run, with the maps seen so far.

    Seen are the refined maps, of source and target and of layout branch and target, whether or not
    the target's own attention is edited at that step: summed over steps, layers and heads, the
    strongest of a region's tokens, enlarged, divided by the maximum, thresholded.
    Source: Xu et al. 2023 (InfEdit, arXiv:2312.04965), Sec. 4.3, as its code computes it.
    Changed: the published blend after the last step is without effect, for the code returns the
    image from before it, and words in both fields act only before the last step; here the last
    step blends too, and that is where they act. A map without any attention is no region.
    """

    def __init__(
        self,
        blend: LayoutBlend,
        edit: set[int],
        keep: set[int],
        token_map: TokenMap,
        sites: frozenset[Site],
        facts: RunFacts,
    ) -> None:
        self.blend, self.sites, self.facts = blend, sites, facts
        self.grid = facts.grid(next(iter(sites)))
        tokens = sorted(edit | keep)
        self.groups = {
            "edit": [n for n, token in enumerate(tokens) if token in edit],
            "keep": [n for n, token in enumerate(tokens) if token in keep - edit],
            "both": [n for n, token in enumerate(tokens) if token in keep & edit],
        }
        self.mapped = (token_map.weights * token_map.mapped)[:, tokens]
        own = torch.diag(1 - token_map.mapped)[:, tokens]
        self.own = own if bool(own.any()) else None
        self.sums: dict[str, Tensor] = {}
        self.mask: Tensor | None = None

    def probe(self, beside: bool) -> Probe:
        """Return what to read of a layer; beside: whether the layout branch is in the batch."""
        return Probe(self.mapped, self.own, self.mapped if beside else None, edited=False)

    def observe(self, source: Tensor, target: Tensor | None, layout: Tensor | None) -> None:
        """Add one layer's maps, "images queries tokens" each; without a layout it is the source."""
        for name, mapped in (("source", source), ("layout", source if layout is None else layout)):
            refined = mapped if target is None else mapped + target
            self.sums[name] = self.sums[name] + refined if name in self.sums else refined

    def apply(
        self, step: int, sigma: float, source: Tensor, target: Tensor, layout: Tensor
    ) -> Tensor:
        """Return the blended target, "images channels height width"; sigma: where the step began.

        Nothing is blended after the first step.
        """
        if step == self.facts.start_step or not self.sums:
            return target
        size, groups = target.shape[2:], self.groups
        threshold = max(NOISE_FLOOR * (1 + sigma**2) ** 0.5, self.blend.edit_threshold)
        allowed = torch.ones_like(target[:, :1], dtype=torch.bool)
        if groups["edit"]:
            allowed = self.region("layout", "edit", threshold, size).to(target.device)
            target = torch.where(allowed, target, layout)
        if groups["keep"]:
            kept = self.region("source", "keep", self.blend.keep_threshold, size).to(target.device)
            target, allowed = torch.where(kept, source, target), allowed & ~kept
        if groups["both"] and step == self.facts.steps - 1:
            kept = self.region("layout", "both", self.blend.edit_threshold, size)
            target = torch.where(kept.to(target.device), layout, target)
        self.mask = allowed[:, 0].float()
        return target

    def region(self, maps: str, group: str, threshold: float, size: torch.Size) -> Tensor:
        """Return where a group's tokens are looked at, bool "images 1 height width"."""
        seen = self.sums[maps][:, :, self.groups[group]].amax(2)
        seen = F.interpolate(seen[:, None].unflatten(2, self.grid), size=size)
        peak = seen.amax((2, 3), keepdim=True)
        return (seen / peak > threshold) & (peak > 0)
