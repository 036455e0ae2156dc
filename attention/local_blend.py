"""LocalBlend: keep the source outside the region that the named words attend to."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import PlanError, TokenMapError
from .plan import RunFacts
from .rules import Probe
from .sites import Site, nearest_grid
from .tokens import TokenizedPrompt

READ_AT = 4
"""Maps are read where the token grid is this fraction of the latent's side (16 x 16 at 512)."""

LEAST_SIDE = 16
"""Tokens a side that the maps should have where a fraction of a small latent would have fewer."""


@dataclass(frozen=True)
class LocalBlend:
    """Which words may change the picture; frozen.

    source, target: words or phrases of the two prompts whose maps make the region.
    subtract: words of either prompt whose region is taken out again.
    threshold: of a map divided by its maximum, (0, 1). subtract_threshold: None for the same.
    start: fraction of the steps before the first blend.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    threshold: float = 0.3
    start: float = 0.2
    subtract_threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.source and not self.target:
            raise TokenMapError(
                "LocalBlend needs a word of the source or of the target prompt that marks what may "
                "change; name one, or leave all its fields empty"
            )
        for name, value in (("threshold", self.threshold),
                            ("subtract_threshold", self.subtract_threshold)):
            if value is not None and not 0 <= value < 1:
                raise PlanError(f"LocalBlend's {name} must be in [0, 1), got {value}")
        if not 0 <= self.start < 1:
            raise PlanError(f"LocalBlend's start must be a fraction in [0, 1), got {self.start}")

    def check(self, source: TokenizedPrompt, target: TokenizedPrompt) -> None:
        """Raise TokenMapError, naming the words there are, for a word that is in no prompt."""
        for prompt, words in ((source, self.source), (target, self.target)):
            for word in words:
                prompt.span(word)
        for word in self.subtract:
            if not has_word(source, word):
                target.span(word)

    def prepare(
        self, source: TokenizedPrompt, target: TokenizedPrompt, facts: RunFacts
    ) -> "PreparedLocalBlend":
        """Resolve words, layers and the first step for one run."""
        sites = nearest_grid(facts.sites, read_at(facts.height, facts.width))
        first = int(self.start * facts.steps)
        if not sites:
            raise PlanError("LocalBlend needs cross-attention layers, which this model lacks")
        probe = Probe(
            word_columns(source, self.source, self.subtract),
            word_columns(target, self.target, self.subtract),
        )
        return PreparedLocalBlend(self, probe, sites, facts.grid(next(iter(sites))), first)


def make_blend(
    source: tuple[str, ...],
    target: tuple[str, ...],
    subtract: tuple[str, ...] = (),
    threshold: float = 0.3,
    start: float = 0.2,
) -> LocalBlend | None:
    """Return a LocalBlend, or None when no word is named at all.

    Raises: TokenMapError when there are only words to subtract.
    """
    if not source and not target and not subtract:
        return None
    return LocalBlend(source, target, subtract, threshold, start)


def read_at(height: int, width: int) -> float:
    """Return the fraction of a latent's side at which maps are read: the published 1 / 4 or finer.

    The published 16 x 16 is a quarter of the one size its code takes. On a latent of 16 x 16 a
    quarter would be 4 x 4, whose pixels are larger than most things that a word names.
    """
    return max(1.0, min(READ_AT, (height * width) ** 0.5 / LEAST_SIDE))


def has_word(prompt: TokenizedPrompt, word: str) -> bool:
    """Return whether a word or phrase is in a prompt."""
    try:
        return bool(prompt.span(word))
    except TokenMapError:
        return False


def word_columns(
    prompt: TokenizedPrompt, words: tuple[str, ...], subtract: tuple[str, ...]
) -> Tensor | None:
    """Return which tokens are summed: "tokens 2" (region, subtracted); None if there are none."""
    columns = torch.zeros(len(prompt.tokens), 2)
    for word in words:
        columns[list(prompt.span(word)), 0] = 1
    for word in subtract:
        if has_word(prompt, word):
            columns[list(prompt.span(word)), 1] = 1
    return columns if bool(columns.any()) else None


class PreparedLocalBlend:
    """A LocalBlend resolved for one run, with the maps seen so far.

    Source: Hertz et al. 2022 (arXiv:2208.01626), Sec. 4 "local editing", as the published code
    computes it: maps are added up over steps, layers and heads of the conditional half, after
    their edit; pooled 3 x 3, enlarged, divided by their maximum, thresholded; the source's region
    is joined to the target's.
    Changed: layers are chosen by their grid (see `read_at`), any aspect ratio; a missing word
    counts as no region where the published code divides 0 by 0; a map without any attention
    likewise.
    """

    def __init__(
        self,
        blend: LocalBlend,
        probe: Probe,
        sites: frozenset[Site],
        grid: tuple[int, int],
        first_step: int,
    ) -> None:
        self.blend, self.probe, self.sites = blend, probe, sites
        self.grid, self.first_step = grid, first_step
        self.sums: dict[str, Tensor] = {}
        self.mask: Tensor | None = None

    def observe(self, source: Tensor | None, target: Tensor | None) -> None:
        """Add one layer's column sums, "images queries 2" each."""
        for name, maps in (("source", source), ("target", target)):
            if maps is not None:
                self.sums[name] = self.sums[name] + maps if name in self.sums else maps

    def apply(self, step: int, source: Tensor, target: Tensor) -> Tensor:
        """Return the target with the source put back outside the mask.

        source, target: "images channels height width" at the same level, where blending in any
        scale of the latent is the same. Nothing changes before the first blend.
        """
        if step < self.first_step or not self.sums:
            return target
        size = target.shape[2:]
        mask = self.region(0, size, self.blend.threshold, pool=True)
        if self.blend.subtract:
            threshold = self.blend.subtract_threshold
            threshold = self.blend.threshold if threshold is None else threshold
            mask = mask & ~self.region(1, size, threshold, pool=False)
        self.mask = mask[:, 0].float()
        return torch.where(mask.to(target.device), target, source)

    def region(self, column: int, size: torch.Size, threshold: float, pool: bool) -> Tensor:
        """Return where either branch's map exceeds the threshold, bool "images 1 height width"."""
        regions = []
        for sums in self.sums.values():
            maps = sums[:, None, :, column].unflatten(2, self.grid)
            if pool:
                maps = F.max_pool2d(maps, 3, stride=1, padding=1)
            maps = F.interpolate(maps, size=size)
            peak = maps.amax((2, 3), keepdim=True)
            regions.append((maps / peak > threshold) & (peak > 0))
        return torch.stack(regions).any(0)
