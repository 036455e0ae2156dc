"""What is happening in one edit (mutable): made when sampling starts, dropped when it ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.errors import HostError
from .kernels import Attention, edited_cross_attention, self_rows, take_rows
from .plan import Control, RunFacts, merge_cross_rules, merge_self_rules
from .rows import SOURCE_COND, SOURCE_UNCOND, TARGET_COND, Role, RowLayout
from .rules import FREE, CrossRule, SelfRule
from .sites import Site


class EditRun:
    """Controls of one run, the step it is at, and the batch that is being evaluated.

    The host room calls `begin` before each model call, `self_inputs` and `cross_attention` from
    its hooks, and `end` after it.
    """

    def __init__(self, facts: RunFacts, controls: Sequence[Control]) -> None:
        self.facts, self.controls = facts, tuple(controls)
        self.step = -1
        self.layout: RowLayout | None = None
        self._cross: dict[Site, CrossRule | None] = {}
        self._self: dict[Site, dict[str, SelfRule]] = {}
        self._reached: set[Site] = set()

    def rules_at(self, step: int) -> None:
        """Resolve all rules of a step (once per step)."""
        if step == self.step:
            return
        self.step = step
        self._cross = {
            site: rule
            for site in self.facts.sites
            if site.kind != "self"
            and (rule := merge_cross_rules(self.controls, step, site)) is not None
        }
        self._self = {}
        for site in self.facts.sites:
            if site.kind == "cross":
                continue
            rules = {
                half: rule
                for half in ("cond", "uncond")
                if (rule := merge_self_rules(self.controls, step, site, half)) != FREE
            }
            if rules:
                self._self[site] = rules

    def source_roles(self, step: int) -> set[Role]:
        """Return the source rows that somebody reads at a step."""
        self.rules_at(step)
        roles = set()
        if any(rule.from_source is not None for rule in self._cross.values()):
            roles.add(SOURCE_COND)
        for rules in self._self.values():
            if "cond" in rules:
                roles.add(SOURCE_COND)
            if "uncond" in rules:
                roles.add(SOURCE_UNCOND)
        return roles

    def last_source_step(self) -> int:
        """Return the last step at which source rows are read; -1 if there is none."""
        steps = range(self.facts.start_step, self.facts.steps)
        return max((step for step in steps if self.source_roles(step)), default=-1)

    @property
    def blends(self) -> bool:
        """Whether a control changes the latent after steps (and so needs the source's)."""
        return any(control.blends for control in self.controls)

    def mask(self, user_mask: Tensor | None) -> Tensor:
        """Return where the edit could act, "images height width" in [0, 1], at latent size."""
        shape = (self.facts.images, self.facts.height, self.facts.width)
        mask = torch.ones(shape)
        if user_mask is not None:
            mask = mask * user_mask[:, 0]
        for control in self.controls:
            if (blend := control.blend_mask()) is not None:
                mask = mask * blend.to("cpu", torch.float32)
        return mask

    def begin(self, step: int, layout: RowLayout) -> None:
        """Start one model call."""
        self.rules_at(step)
        self.layout = layout
        self._reached.clear()

    def end(self) -> None:
        """Finish one model call. Raises: HostError if a layer with a rule was never reached."""
        layout, self.layout = self.layout, None
        if layout is None or not layout.has(TARGET_COND):
            return
        missed = (set(self._self) | set(self._cross)) - self._reached
        if missed:
            names = ", ".join(sorted(map(str, missed))[:4])
            raise HostError(
                f"{len(missed)} attention layers were never reached by their controller ({names}): "
                "another node replaces these blocks; remove it or connect the model before it"
            )

    def edits(self, site: Site) -> bool:
        """Whether this call's cross-attention at a site is changed."""
        return self.layout is not None and self._cross.get(site) is not None

    def reach(self, site: Site) -> None:
        """Note that a site's hook ran in this call."""
        self._reached.add(site)

    def self_inputs(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of a self-attention with rows swapped by the step's rules.

        query, key, value: "rows tokens channels", before their projections.
        """
        if self.layout is None:
            return query, key, value
        self._reached.add(site)
        rules = {
            half: rule
            for half, rule in self._self.get(site, {}).items()
            if self.layout.has(Role("target", half))
        }
        if not rules:
            return query, key, value
        rows = {part: self_rows(self.layout, part, rules) for part in ("query", "key", "value")}
        return (
            take_rows(query, rows["query"]),
            take_rows(key, rows["key"]),
            take_rows(value, rows["value"]),
        )

    def cross_attention(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, attention: Attention
    ) -> Tensor:
        """Return a cross-attention's output with the target's rows edited by the step's rule."""
        if self.layout is None:
            return attention(q, k, v)
        self._reached.add(site)
        rule = self._cross.get(site)
        if rule is None or not self.layout.has(TARGET_COND):
            return attention(q, k, v)
        return edited_cross_attention(q, k, v, self.layout, rule, attention)

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        """Let every control change the target after a step, in order."""
        for control in self.controls:
            target = control.after_step(step, sigma, source, target)
        return target
