"""PatchMerge in the host's model calls: every run of Retrace that carries it merges alike."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..attention.patch_merge import MergeCall, PatchMerge, assign_layers
from ..attention.rows import RowLayout
from ..attention.sites import Site
from .model import attention_sites
from .plans import ACTIVE, get_plan, with_controller

log = logging.getLogger(__name__)


def with_patch_merge(model: Any, merge: PatchMerge) -> Any:
    """Return a clone of a MODEL whose runs in Retrace merge tokens.

    Raises: HostError for a model whose attention Retrace cannot reach, BlockSelectionError when
    no layer is chosen, PlanError when two ask for one layer; nothing is checked at ratio 0.
    """
    merged = with_controller(model, merge)
    Merging.of(merged)
    return merged


class Merging:
    """What merges in one run, and what it has merged so far."""

    def __init__(
        self,
        layers: tuple[tuple[PatchMerge, frozenset[Site]], ...],
        grid: Tensor | None = None,
    ) -> None:
        """grid: all levels of the trajectory, "steps+1" increasing.

        Raises: PlanError if a window holds none of its steps.
        """
        self.layers, self.grid = layers, grid
        for merge, _ in layers if grid is not None else ():
            merge.levels(grid)
        self.merged: dict[Site, tuple[int, int]] = {}
        self.asked: set[Site] = set()

    @classmethod
    def of(cls, model: Any, grid: Tensor | None = None) -> "Merging":
        """Return the merging that PatchMerge nodes left on a MODEL; empty if there is none."""
        found = [c for c in get_plan(model).controllers if isinstance(c, PatchMerge) and c.ratio]
        return cls(assign_layers(found, attention_sites(model)) if found else (), grid)

    def attach(
        self, options: dict, layout: RowLayout, sigma: Tensor, x: Tensor
    ) -> tuple[dict, MergeCall | None]:
        """Return options of one model call that merges, and the call; as they are without.

        x: "rows channels height width", the call's latents. Hooks come behind those that swap
        rows, so that what is merged is what attention reads, and unmerge before others look.
        """
        level = float(sigma.flatten()[0]) if self.layers else 0.0
        acting = {
            site: merge
            for merge, sites in self.layers
            if merge.acts_at(level, self.grid)
            for site in sites
        }
        if not acting:
            return options, None
        self.asked |= set(acting)
        transformer = {**options.get("transformer_options", {})}
        replaced = transformer.get("patches_replace", {}).get("attn1", {})
        free = {
            site: merge
            for site, merge in acting.items()
            if site.address not in replaced and (site.stage, site.index) not in replaced
        }
        call = MergeCall(free, layout, level, x.shape[2], x.shape[3])
        before, after = merge_patches(call)
        patches = {**transformer.get("patches", {})}
        patches["attn1_patch"] = [*patches.get("attn1_patch", []), before]
        patches["attn1_output_patch"] = [after, *patches.get("attn1_output_patch", [])]
        transformer["patches"] = patches
        return {**options, "transformer_options": transformer}, call

    def note(self, call: MergeCall | None) -> None:
        """Remember what a call has merged."""
        if call is not None:
            self.merged |= call.merged

    def report(self) -> dict[str, str]:
        """Return a report entry on what was merged in the run; warn of layers that were not."""
        if not self.asked:
            return {}
        counts = sorted(set(self.merged.values()), reverse=True)
        shown = ", ".join(f"{before} to {after} tokens" for before, after in counts)
        entries = {"patch_merge": f"{len(self.merged)} layers, {shown or 'nothing merged'}"}
        left = self.asked - set(self.merged)
        if left:
            entries["patch_merge_left_out"] = f"{len(left)} layers, replaced or masked"
            log.warning(
                "PatchMerge left %d of %d layers as they are (%s): a mask or another node replaces "
                "their self-attention, or changes its tokens", len(left), len(self.asked),
                ", ".join(sorted(map(str, left))[:4]),
            )  # fmt: skip
        return entries


def merge_patches(call: MergeCall) -> tuple[Callable, Callable]:
    """Return the attn1 patch and the attn1 output patch of one model call of a UNet."""
    sites = {site.address: site for site in call.layers}

    def own(extra: dict) -> Site | None:
        if ACTIVE not in extra or "block" not in extra:
            return None
        return sites.get((*extra["block"], extra["block_index"]))

    def before(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> tuple:
        site = own(extra)
        return (query, key, value) if site is None else call.inputs(site, query, key, value)

    def after(out: Tensor, extra: dict) -> Tensor:
        site = own(extra)
        return out if site is None else call.output(site, out)

    return before, after
