"""LEDITS++'s masked guidance (Brack et al. 2023, arXiv:2311.16711) as a controller."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from ..diffusion.sparse_guidance import attention_mask, noise_mask
from .plan import Control, Halves, RunFacts
from .rules import Probe
from .sites import Site, nearest_grid
from .tokens import TokenizedPrompt

MASKS = ("intersect", "attention", "noise")
READ_AT = 4
"""Maps are read where the token grid is this fraction of the latent's side (16 x 16 at 512)."""


@dataclass(frozen=True, eq=False)
class SparseGuidance:
    """What a Sparse-Guidance node asks for; frozen.

    prompt: the edit's own prompt, whose words are looked at (None: only the noise mask can be
    used). masks: "intersect" is the paper's product of both, "attention" and "noise" one alone.
    quantile: fraction of the picture where guidance is dropped. start: fraction of the steps that
    are left unmasked at the noisy end.
    """

    prompt: TokenizedPrompt | None = None
    masks: str = "intersect"
    quantile: float = 0.75
    start: float = 0.0

    name = "Sparse-Guidance"

    @property
    def on_attention(self) -> bool:
        return self.masks != "noise"

    def __post_init__(self) -> None:
        if self.masks not in MASKS:
            raise PlanError(f"masks must be one of {', '.join(MASKS)}, got {self.masks!r}")
        if not 0 < self.quantile < 1 or not 0 <= self.start < 1:
            raise PlanError(
                "the quantile must be between 0 and 1 (0 would drop nothing) and start in [0, 1), "
                f"got {self.quantile} and {self.start}"
            )
        if self.masks != "noise" and (self.prompt is None or not self.prompt.words()):
            raise PlanError(
                f"masks {self.masks!r} look at the edit's words: connect prompts whose target is "
                "not empty, or choose masks 'noise'"
            )

    def __deepcopy__(self, memo: dict) -> "SparseGuidance":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedSparseGuidance":
        return PreparedSparseGuidance(self, facts)


class PreparedSparseGuidance(Control):
    """Sparse guidance in one run; keeps this step's maps and the last mask."""

    name = SparseGuidance.name

    def __init__(self, asked: SparseGuidance, facts: RunFacts) -> None:
        self.asked, self.facts = asked, facts
        self.first = int(asked.start * facts.steps)
        self.sites = nearest_grid(facts.sites, READ_AT) if asked.on_attention else frozenset()
        if asked.on_attention and not self.sites:
            raise PlanError("the attention mask needs cross-attention, which this model lacks")
        self.columns = word_column(asked.prompt) if asked.on_attention else None
        self.maps: Tensor | None = None
        self.mask: Tensor | None = None

    def probe(self, step: int, site: Site) -> Probe | None:
        if step < self.first or site not in self.sites:
            return None
        return Probe(None, self.columns)

    def observe(
        self, step: int, site: Site, source: Tensor | None, target: Tensor | None
    ) -> None:
        """Add one layer's map of the edit's words, "images queries 1"."""
        if target is not None:
            self.maps = target if self.maps is None else self.maps + target

    def guidance(self, step: int, sigma: Tensor, halves: Halves) -> Halves:
        """Drop the target's guidance outside the mask: cond = uncond + mask (cond - uncond)."""
        maps, self.maps = self.maps, None
        cond, uncond = halves.get("target", (None, None))
        if uncond is None:
            raise PlanError(
                "Sparse-Guidance acts on guidance, but cfg is 1; set the sampler's cfg higher"
            )
        if step < self.first:
            return halves
        delta = cond - uncond
        mask = torch.ones_like(delta[:, :1])
        if maps is not None:
            grid = self.facts.grid(next(iter(self.sites)))
            seen = maps[:, None, :, 0].unflatten(2, grid).to(delta)
            mask = attention_mask(seen, self.asked.quantile, tuple(delta.shape[2:]))
        if self.asked.masks != "attention":
            mask = mask * noise_mask(delta, self.asked.quantile)
        self.mask = mask[:, 0]
        return {**halves, "target": (uncond + mask * delta, uncond)}

    def blend_mask(self) -> Tensor | None:
        return self.mask


def word_column(prompt: TokenizedPrompt) -> Tensor:
    """Return the weight of each token, "tokens 1": 1 for the prompt's words, 0 for the rest."""
    column = torch.zeros(len(prompt.tokens), 1)
    for word in prompt.words():
        column[list(word.tokens), 0] = 1
    return column
