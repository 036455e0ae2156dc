"""Foreground masks for MasaCtrl: fitted to token grids, or read from cross-attention by words."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import LatentError, PlanError, TokenMapError
from .plan import RunFacts
from .prompt_to_prompt import PromptPair
from .rules import KeyMask, Probe
from .sites import Site, nearest_grid
from .tokens import TokenizedPrompt

READ_AT = 4
"""Maps are read where the token grid is this fraction of the latent's side (16 x 16 at 512)."""


def make_mask(mask: Tensor | None) -> Tensor | None:
    """Return a MASK as float32 "images height width" on the CPU; None stays None.

    Raises: LatentError for a mask of the wrong shape, or one that selects nothing.
    """
    if mask is None:
        return None
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise LatentError(f"expected a mask [images height width], got {list(mask.shape)}")
    if not bool(mask.isfinite().all()) or bool((mask.amax((1, 2)) <= 0).any()):
        raise LatentError("a foreground mask selects nothing (or holds NaN); paint it or remove it")
    return mask


def fit_token_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a mask at a layer's token grid: "images-or-1 height width" to "images-or-1 tokens"."""
    return fit_mask(mask, grid).flatten(1)


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize "images-or-1 height width" to "images-or-1 rows columns", in [0, 1].

    Source: the published code's nearest resize (algorithms 10.2).
    """
    return F.interpolate(mask[:, None].float(), size=size)[:, 0].clamp(0, 1)


@dataclass(frozen=True, eq=False)
class AutoMask:
    """Which words' cross-attention marks the foreground; frozen.

    source, target: words of the two prompts. threshold: of a map scaled to [0, 1] (published 0.1).
    """

    source_prompt: TokenizedPrompt
    target_prompt: TokenizedPrompt
    source: tuple[str, ...]
    target: tuple[str, ...]
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not self.source or not self.target:
            raise TokenMapError(
                "automatic masks need a word of the source prompt and one of the target prompt; "
                "name both, or clear both for no masks"
            )
        if not 0 < self.threshold < 1:
            raise PlanError(f"the mask threshold must be in (0, 1), got {self.threshold}")
        self.columns()

    def __deepcopy__(self, memo: dict) -> "AutoMask":
        return self

    def columns(self) -> Probe:
        """Return the token columns to read. Raises: TokenMapError for a word that is not there."""
        columns = []
        for prompt, words in (
            (self.source_prompt, self.source), (self.target_prompt, self.target)
        ):
            column = torch.zeros(len(prompt.tokens), 1)
            for word in words:
                column[list(prompt.span(word))] = 1
            columns.append(column)
        return Probe(*columns)

    def prepare(self, facts: RunFacts) -> "MaskReader":
        """Resolve the layers for one run. Raises: PlanError if there are none to read."""
        sites = nearest_grid(facts.sites, READ_AT)
        if not sites:
            raise PlanError("automatic masks need cross-attention layers, which this model lacks")
        return MaskReader(self.columns(), self.threshold, sites, facts.grid(next(iter(sites))))


def make_auto_mask(
    prompts: PromptPair | None,
    source: tuple[str, ...],
    target: tuple[str, ...],
    threshold: float = 0.1,
) -> AutoMask | None:
    """Return an AutoMask, or None when no word is named.

    Raises: TokenMapError when prompts or the words of one side are missing.
    """
    if not source and not target:
        return None
    if prompts is None:
        raise TokenMapError(
            "automatic masks are made from words, but no prompts are connected; connect Prompt-Pair"
        )
    return AutoMask(prompts.source, prompts.target, source, target, threshold)


class MaskReader:
    """Masks of the current step, from the cross-attention layers that have run so far in it.

    Source: Cao et al. 2023 (arXiv:2304.08465), Sec. 3.3, from averaged 16 x 16 maps as the
    published code computes it: summed over the words' tokens, scaled to [0, 1], thresholded.
    Changed: layers are chosen by their grid, any aspect ratio.
    """

    def __init__(
        self, probe: Probe, threshold: float, sites: frozenset[Site], grid: tuple[int, int]
    ) -> None:
        self.probe, self.threshold, self.sites, self.grid = probe, threshold, sites, grid
        self.step = -1
        self.maps: tuple[Tensor, Tensor] | None = None
        self._masks: dict[tuple[int, int], KeyMask] = {}

    def observe(self, step: int, source: Tensor, target: Tensor) -> None:
        """Add one layer's maps, "images queries 1" each."""
        if step != self.step or self.maps is None:
            self.step, self.maps = step, (source, target)
        else:
            self.maps = (self.maps[0] + source, self.maps[1] + target)
        self._masks.clear()

    def key_mask(self, step: int, grid: tuple[int, int]) -> KeyMask | None:
        """Return this step's masks at a token grid; None before a map of the step was read."""
        if self.maps is None or step != self.step:
            return None
        if grid not in self._masks:
            source, target = (fit_token_mask(self.foreground(m), grid).cpu() for m in self.maps)
            self._masks[grid] = KeyMask(source > 0.5, target)
        return self._masks[grid]

    def foregrounds(self) -> tuple[Tensor, Tensor] | None:
        """Return the masks of all maps of the last step, "images height width"; None before it."""
        if self.maps is None:
            return None
        source, target = (self.foreground(maps).cpu() for maps in self.maps)
        return source, target

    def foreground(self, maps: Tensor) -> Tensor:
        """Return a thresholded map, "images height width" in {0, 1}."""
        maps = maps[:, :, 0].unflatten(1, self.grid)
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        scaled = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
        return (scaled >= self.threshold).float()
