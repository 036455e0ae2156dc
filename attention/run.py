"""What is happening in one edit (mutable): made when sampling starts, dropped when it ends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.errors import HostError
from .kernels import (
    Attention,
    edited_cross_attention,
    masked_self_attention,
    residual_rows,
    self_rows,
    take_rows,
)
from .key_masks import fit_mask
from .plan import Control, Halves, RunFacts, merge_cross_rules, merge_self_rules
from .probes import probe_maps
from .replay import (
    check_recorded,
    replayed_cross_inputs,
    replayed_probe_inputs,
    replayed_residual,
    replayed_self_inputs,
)
from .rows import SOURCE_COND, TARGET_COND, Role, RowLayout
from .rules import FREE, CrossRule, KeyMask, Probe, SelfRule
from .sites import ResidualBlock, Site
from .store import AttentionStore, Slot


class EditRun:
    """Controls of one run, the step it is at, and the batch that is being evaluated.

    The host room calls `begin` before each model call, `self_inputs` and `cross_attention` from
    its hooks, and `end` after it.
    """

    def __init__(
        self, facts: RunFacts, controls: Sequence[Control], store: AttentionStore | None = None
    ) -> None:
        """store: recorded attention that is read in place of source rows."""
        self.facts, self.controls, self.store = facts, tuple(controls), store
        self.step = -1
        self.layout: RowLayout | None = None
        self._cross: dict[Site, CrossRule | None] = {}
        self._self: dict[Site, dict[str, SelfRule]] = {}
        self._probes: dict[Site, list[tuple[Control, Probe]]] = {}
        self._residuals: frozenset[ResidualBlock] = frozenset()
        self._reached: set[Site | ResidualBlock] = set()

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
                for half in self.facts.halves
                if (rule := merge_self_rules(self.controls, step, site, half)) != FREE
            }
            if rules:
                self._self[site] = rules
        self._probes = {
            site: probes
            for site in self.facts.sites
            if site.kind == "cross"
            and (probes := [(c, p) for c in self.controls if (p := c.probe(step, site))])
        }
        self._residuals = frozenset().union(*(c.residuals(step) for c in self.controls))

    def source_roles(self, step: int) -> set[Role]:
        """Return the source rows that somebody reads at a step; none when they are recorded."""
        if self.store is not None:
            return set()
        self.rules_at(step)
        roles = set()
        if any(rule.from_source is not None for rule in self._cross.values()):
            roles.add(SOURCE_COND)
        if any(p.source is not None for probes in self._probes.values() for _, p in probes):
            roles.add(SOURCE_COND)
        if self._residuals:
            roles.add(SOURCE_COND)
        for rules in self._self.values():
            for half, rule in rules.items():
                roles.add(Role("source", rule.source_half or half))
        return roles

    def recorded_slots(self, step: int) -> set[Slot]:
        """Return what the rules of a step read of the source, as a store addresses it."""
        self.rules_at(step)
        read = {site for site, rule in self._cross.items() if rule.from_source is not None}
        slots = {Slot(part, site) for site in read | set(self._probes) for part in ("query", "key")}
        slots |= {Slot("feature", block) for block in self._residuals}
        for site, rules in self._self.items():
            halves = {rule.source_half or half for half, rule in rules.items()}
            slots |= {Slot("hidden", site, half) for half in halves}
        return slots

    def check_store(self) -> None:
        """Raise PlanError before the run if the store lacks something that will be read."""
        if self.store is None:
            return
        steps = range(self.facts.start_step, self.facts.steps)
        check_recorded(self.store, {step: self.recorded_slots(step) for step in steps})

    def self_sites(self) -> set[Site]:
        """Return the self-attention layers that a rule acts on at any step of the run."""
        found = set()
        for step in range(self.facts.start_step, self.facts.steps):
            self.rules_at(step)
            found |= set(self._self)
        return found

    def masked_sites(self) -> set[Site]:
        """Return the self-attention layers whose keys a control may mask."""
        return {
            site
            for site in self.facts.sites
            if site.kind == "self" and any(c.masks_keys(site) for c in self.controls)
        }

    def residual_blocks(self) -> set[ResidualBlock]:
        """Return the residual blocks that a control acts on at any step of the run."""
        steps = range(self.facts.start_step, self.facts.steps)
        return {block for c in self.controls for step in steps for block in c.residuals(step)}

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

    def foregrounds(self) -> tuple[Tensor, Tensor]:
        """Return the foregrounds of source and target that keys were last masked by.

        "images height width" each, in [0, 1], at latent size; all ones where nothing is masked.
        """
        shape = (self.facts.images, self.facts.height, self.facts.width)
        asked = (control.foregrounds() for control in self.controls)
        found = next((masks for masks in asked if masks is not None), None)
        if found is None:
            return torch.ones(shape), torch.ones(shape)
        source, target = (fit_mask(mask, shape[1:]).expand(shape) for mask in found)
        return source, target

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
        wanted = {*self._self, *self._cross, *self._probes, *self._residuals}
        missed = wanted - self._reached
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
        if self.store is not None:
            return replayed_self_inputs(
                self.store, self.layout, site, self.step, rules, (query, key, value)
            )
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
        replayed = None
        if self.store is not None and rule.from_source is not None:
            *replayed, k, v = replayed_cross_inputs(self.store, site, self.step, q, k, v)
        return edited_cross_attention(q, k, v, self.layout, rule, attention, replayed)

    def observe(
        self, site: Site, q: Tensor, k: Tensor, attention: Attention, heads: int
    ) -> None:
        """Read the columns that controls ask of a cross-attention and hand them over.

        q, k: "rows tokens heads*dim", projected.
        """
        if self.layout is None or not self.layout.has(TARGET_COND):
            return
        rule, layout = self._cross.get(site), self.layout
        if self.store is not None and site in self._probes:
            q, k, layout = replayed_probe_inputs(self.store, site, self.step, q, k, layout)
        for control, probe in self._probes.get(site, ()):
            maps = probe_maps(q, k, layout, rule, probe, attention, heads)
            control.observe(self.step, site, *maps)

    def self_attention(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, attention: Attention
    ) -> Tensor:
        """Return a self-attention's output, foreground and background keys apart if asked.

        q, k, v: "rows tokens channels", projected from what `self_inputs` returned.
        """
        mask = self.key_mask(site)
        if mask is None:
            return attention(q, k, v)
        return masked_self_attention(q, k, v, self.layout, self._self[site], mask, attention)

    def key_mask(self, site: Site) -> KeyMask | None:
        """Return the key mask of a self-attention in this call, if there is one."""
        if self.layout is None or site not in self._self:
            return None
        masks = (control.key_mask(self.step, site) for control in self.controls)
        return next((mask for mask in masks if mask is not None), None)

    def residual(self, block: ResidualBlock, h: Tensor) -> Tensor:
        """Return a residual branch's output with the target's rows taken from the source.

        h: "rows channels height width".
        """
        if self.layout is None or block not in self._residuals:
            return h
        self._reached.add(block)
        if self.store is not None:
            return replayed_residual(self.store, self.layout, block, self.step, h)
        return take_rows(h, residual_rows(self.layout))

    def map_guidances(self, step: int) -> list[Any]:
        """Return how controls pull the target to the source's maps at a step, in order."""
        asked = [control.map_guidance(step) for control in self.controls]
        return [guidance for guidance in asked if guidance is not None]

    def last_guided_step(self) -> int:
        """Return the last step whose source latent is needed for its maps; -1 if there is none."""
        steps = range(self.facts.start_step, self.facts.steps)
        return max((step for step in steps if self.map_guidances(step)), default=-1)

    def guidance(self, step: int, sigma: Tensor, halves: Halves) -> Halves:
        """Let every control change what guidance mixes, in order."""
        for control in self.controls:
            halves = control.guidance(step, sigma, halves)
        return halves

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        """Let every control change the target after a step, in order."""
        for control in self.controls:
            target = control.after_step(step, sigma, source, target)
        return target
