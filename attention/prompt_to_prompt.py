"""Prompt-to-Prompt (Hertz et al. 2022, arXiv:2208.01626): replace, refine and reweight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from .alignment import TokenMap, make_token_map
from .local_blend import LocalBlend, PreparedLocalBlend
from .plan import Control, RunFacts
from .rules import CrossRule, Probe, SelfRule
from .sites import Site, is_transformer, sites_at_depth
from .tokens import TokenizedPrompt
from .windows import Window, check_window, token_gates, window_steps

SELF_REPLACE = SelfRule("source", "source", "target")


@dataclass(frozen=True, eq=False)
class PromptPair:
    """Source and target prompt with their tokens.

    published: use the reference's token maps where they differ from ours (see `alignment`).
    """

    source: TokenizedPrompt
    target: TokenizedPrompt
    published: bool = False

    def __deepcopy__(self, memo: dict) -> "PromptPair":
        return self


@dataclass(frozen=True, eq=False)
class PromptToPrompt:
    """What a P2P-Controller asks for; frozen.

    cross_replace, self_replace: windows in which the source's cross- and self-attention is used,
      [start, end) as fractions of the steps.
    word_windows: own windows for single target words. reweight: factors on target words' maps,
      inside the cross window (1 changes nothing, negative suppresses).
    self_tokens: self-attention layers with more image tokens than this are left alone; None
      scales the published limit of 32 x 32 (half the latent's sides) to the image, and does not
      limit a transformer, whose layers all have one grid.
    cross_depth, self_depth: which layers are edited, [start, end) as fractions of them in call
      order; published: all.
    blend: words outside whose region the source is kept, or None.
    """

    prompts: PromptPair
    mode: str = "auto"
    cross_replace: Window = (0.0, 0.4)
    self_replace: Window = (0.0, 0.6)
    word_windows: tuple[tuple[str, Window], ...] = ()
    reweight: tuple[tuple[str, float], ...] = ()
    self_tokens: int | None = None
    blend: LocalBlend | None = None
    cross_depth: Window = (0.0, 1.0)
    self_depth: Window = (0.0, 1.0)

    name = "P2P-Controller"

    def __post_init__(self) -> None:
        check_window("cross_replace", self.cross_replace)
        check_window("self_replace", self.self_replace)
        check_window("cross_depth", self.cross_depth)
        check_window("self_depth", self.self_depth)
        for word, _ in self.word_windows:
            self.prompts.target.span(word)
        for word, _ in self.reweight:
            self.prompts.target.span(word)
        if self.blend is not None:
            self.blend.check(self.prompts.source, self.prompts.target)

    def __deepcopy__(self, memo: dict) -> "PromptToPrompt":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedPromptToPrompt":
        """Resolve windows, token map and layers for one run.

        Raises: PlanError when nothing would be done, TokenMapError when prompts do not align.
        """
        pair = self.prompts
        token_map = make_token_map(pair.source, pair.target, self.mode, pair.published)
        gates = token_gates(pair.target, facts.steps, self.cross_replace, self.word_windows)
        self_steps = window_steps(self.self_replace, facts.steps)
        sites = sites_at_depth(facts.sites, "cross", self.cross_depth) | self.self_sites(facts)
        idle = not bool(gates[facts.start_step :].any()) and facts.start_step >= self_steps.stop
        if idle and self.blend is None:
            raise PlanError(
                "P2P-Controller would do nothing: neither the cross nor the self window covers a "
                f"step (steps {facts.start_step} to {facts.steps - 1} run); raise cross_replace "
                "or self_replace, or remove the node"
            )
        blend = self.blend and self.blend.prepare(pair.source, pair.target, facts)
        return PreparedPromptToPrompt(
            token_map, gates, equalizer(pair.target, self.reweight), self_steps, sites, blend
        )

    def self_sites(self, facts: RunFacts) -> frozenset[Site]:
        """Return the self-attention layers whose maps may be the source's."""
        sites = sites_at_depth(facts.sites, "self", self.self_depth)
        if self.self_tokens is None and is_transformer(facts.sites):
            return sites
        limit = self.self_tokens or -(-facts.height // 2) * -(-facts.width // 2)
        return frozenset(site for site in sites if facts.tokens(site) <= limit)


def equalizer(prompt: TokenizedPrompt, factors: Sequence[tuple[str, float]]) -> Tensor:
    """Return the factor of each target token's map, "tokens", 1 where none is asked for."""
    values = torch.ones(len(prompt.tokens))
    for word, factor in factors:
        values[list(prompt.span(word))] = factor
    return values


class PreparedPromptToPrompt(Control):
    """Prompt-to-Prompt resolved for one run."""

    name = PromptToPrompt.name

    def __init__(
        self,
        token_map: TokenMap,
        gates: Tensor,
        equalizer: Tensor,
        self_steps: range,
        sites: frozenset[Site],
        blend: PreparedLocalBlend | None = None,
    ) -> None:
        self.token_map, self.gates, self.equalizer = token_map, gates, equalizer
        self.self_steps, self.sites = self_steps, sites
        self.blend = blend
        self._cross_rules: dict[int, CrossRule | None] = {}

    @property
    def blends(self) -> bool:
        return self.blend is not None

    def self_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        if half == "cond" and step in self.self_steps and site in self.sites:
            return SELF_REPLACE
        return None

    def cross_rule(self, step: int, site: Site) -> CrossRule | None:
        if site not in self.sites:
            return None
        if step not in self._cross_rules:
            gate = self.gates[step]
            rule = cross_rule(self.token_map, gate, self.equalizer) if bool(gate.any()) else None
            self._cross_rules[step] = rule
        return self._cross_rules[step]

    def probe(self, step: int, site: Site) -> Probe | None:
        return self.blend.probe if self.blend and site in self.blend.sites else None

    def observe(
        self, step: int, site: Site, source: Tensor | None, target: Tensor | None
    ) -> None:
        self.blend.observe(source, target)

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        return target if self.blend is None else self.blend.apply(step, source, target)

    def blend_mask(self) -> Tensor | None:
        return None if self.blend is None else self.blend.mask


def cross_rule(token_map: TokenMap, gate: Tensor, equalizer: Tensor) -> CrossRule:
    """Write one step's edit of the map as matrices on the values.

    With mapping W, its mask a, the gate g and the equaliser e (per target token n), the paper's
      M'[n] = g[n] e[n] (a[n] sum_w M_s[w] W[w, n] + (1 - a[n]) M_t[n]) + (1 - g[n]) M_t[n]
    acts on values V_t as M_s (from_source V_t) + M_t (from_target * V_t).
    Source: Hertz et al. 2022, Sec. 3.2 and Alg. 1; maps are not renormalised, as published.
    """
    mapped = token_map.mapped
    from_source = token_map.weights * (gate * equalizer * mapped)
    from_target = gate * equalizer * (1 - mapped) + (1 - gate)
    return CrossRule(
        from_source if bool(from_source.any()) else None,
        from_target if bool(from_target.any()) else None,
    )
