"""InfEdit's unified attention control (Xu et al. 2023, arXiv:2312.04965), with a layout branch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from .alignment import TokenMap, make_token_map
from .layout_blend import LayoutBlend, PreparedLayoutBlend
from .masactrl import MUTUAL
from .plan import Control, Halves, RunFacts
from .prompt_to_prompt import SELF_REPLACE, PromptPair, cross_rule
from .rules import CrossRule, Probe, SelfRule
from .sites import Site

ORIGINS = ("layout", "source")
"""Whose maps refine the target's: the layout branch's (the paper's benchmark) or the source's."""


@dataclass(frozen=True, eq=False)
class UnifiedControl:
    """What a UAC-Controller asks for; frozen.

    mode: of the token map, see `alignment`. cross_replace, self_replace: fractions of the steps,
      from the noisy end, in which the target's cross-attention is refined, and in which its
      self-attention map is the source's. After the latter the layout branch draws the target's
      layout with the source's content. cross_from: see `ORIGINS`. blend: by words, or None.
    """

    prompts: PromptPair
    mode: str = "auto"
    cross_replace: float = 0.7
    self_replace: float = 0.7
    cross_from: str = "layout"
    blend: LayoutBlend | None = None

    name = "UAC-Controller"

    def __post_init__(self) -> None:
        for name in ("cross_replace", "self_replace"):
            if not 0 <= getattr(self, name) <= 1:
                raise PlanError(f"{name} must be a fraction in [0, 1], got {getattr(self, name)}")
        if self.cross_from not in ORIGINS:
            raise PlanError(
                f"cross_from must be one of {', '.join(ORIGINS)}, got {self.cross_from!r}"
            )
        for words in (self.blend.edit, self.blend.keep) if self.blend else ():
            for word in words:
                self.prompts.target.span(word)

    def __deepcopy__(self, memo: dict) -> "UnifiedControl":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedUnifiedControl":
        """Resolve windows, token map and layers for one run.

        Raises: PlanError when nothing would be done, TokenMapError when prompts do not align.
        """
        pair = self.prompts
        token_map = make_token_map(pair.source, pair.target, self.mode, pair.published)
        cross, structure = self.windows(facts.steps)
        if max(cross.stop, structure.stop) <= facts.start_step and self.blend is None:
            raise PlanError(
                "UAC-Controller would do nothing: neither window covers a step (steps "
                f"{facts.start_step} to {facts.steps - 1} run); raise cross_replace or "
                "self_replace, or remove the node"
            )
        blend = self.blend and self.blend.prepare(pair.target, token_map, facts)
        return PreparedUnifiedControl(
            cross, structure, self.layout_steps(facts, cross, structure), self.cross_from,
            token_map, blend,
        )  # fmt: skip

    def windows(self, steps: int) -> tuple[range, range]:
        """Return the steps of refined cross-attention and of the source's structure.

        Source: the published bounds, over (step + 1) / steps: at most, and below, the fraction.
        """
        done = [(step + 1) / steps for step in range(steps)]
        cross = range(sum(fraction <= self.cross_replace for fraction in done))
        return cross, range(sum(fraction < self.self_replace for fraction in done))

    def layout_steps(self, facts: RunFacts, cross: range, structure: range) -> range:
        """Return the steps at which the layout branch differs from the source and is read.

        While the source's structure is used, all its inputs are the source's, and so it is.
        """
        first = max(structure.stop, facts.start_step)
        last = cross.stop if self.cross_from == "layout" else 0
        if self.blend and self.blend.edit:
            last = facts.steps
        return range(first, last) if first < last else range(0)


class PreparedUnifiedControl(Control):
    """Unified attention control resolved for one run.

    Source: Xu et al. 2023 (arXiv:2312.04965), Sec. 4.3 and Alg. 3; bounds and rows as in its code.
    Changed: the layout branch is the source branch until it begins to differ and ends when nobody
    reads it, which saves its rows and changes no result. The token map is Prompt-to-Prompt's: the
    published one also links the most similar tokens of a gap, where `mode` "replace" links words.
    """

    name = UnifiedControl.name

    def __init__(
        self,
        cross: range,
        structure: range,
        layout: range,
        cross_from: str,
        token_map: TokenMap,
        blend: PreparedLayoutBlend | None,
    ) -> None:
        self.cross, self.structure, self.layout, self.blend = cross, structure, layout, blend
        self.cross_from = cross_from
        always = torch.ones_like(token_map.mapped)
        self.rules = {
            branch: cross_rule(token_map, always, always)._replace(branch=branch)
            for branch in ORIGINS
        }
        self.sigma, self.beside = 0.0, None

    @property
    def blends(self) -> bool:
        return self.blend is not None

    def self_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        return SELF_REPLACE if step in self.structure else None

    def layout_steps(self) -> range:
        return self.layout

    def layout_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        return MUTUAL

    def cross_rule(self, step: int, site: Site) -> CrossRule | None:
        if step not in self.cross:
            return None
        return self.rules[self.cross_from if step in self.layout else "source"]

    def probe(self, step: int, site: Site) -> Probe | None:
        if self.blend is None or site not in self.blend.sites:
            return None
        return self.blend.probe(step in self.layout)

    def observe(
        self,
        step: int,
        site: Site,
        source: Tensor | None,
        target: Tensor | None,
        layout: Tensor | None = None,
    ) -> None:
        self.blend.observe(source, target, layout)

    def guidance(self, step: int, sigma: Tensor, halves: Halves) -> Halves:
        """Note the noise level of the step; guidance stays as it is."""
        self.sigma = float(sigma)
        return halves

    def see_layout(self, layout: Tensor) -> None:
        self.beside = layout

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        if self.blend is None:
            return target
        beside = source if self.beside is None else self.beside
        return self.blend.apply(step, self.sigma, source, target, beside)

    def blend_mask(self) -> Tensor | None:
        return None if self.blend is None else self.blend.mask
