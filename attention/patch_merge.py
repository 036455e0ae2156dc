"""PatchMerge (DiT4Edit, Feng et al. 2024, arXiv:2411.03286): which layers merge tokens, and when.

`PatchMerge` is what a node asks for; `MergeCall` does it in one model call, for any host.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import BlockSelectionError, PlanError
from .plan import Control, RunFacts
from .rows import RowLayout
from .sites import Site, select_sites
from .token_merge import Matching, match_tokens, merge_rows, sketch
from .windows import Window, check_window, window_steps

MOST_MERGED = 0.9
"""Greatest ratio; the published one is 0.8."""

MERGED = ("all", "queries", "keys and values")
"""What is merged before attention: everything is the published way."""

ALIKE = 1e-5
"""Relative difference within which two noise levels are the same."""


@dataclass(frozen=True, eq=False)
class PatchMerge:
    """What a PatchMerge node asks for; frozen.

    ratio: fraction of the tokens merged away; 0 is off. stride: side of the cells that give
      one destination each, grown where the ratio needs it.
    max_downsample: the coarsest level of a UNet that is merged, 1 the finest; transformers have
      one level and ignore it. layers: see `select_sites`. merged: one of `MERGED`.
    window: steps, [start, end) as fractions of all steps, 0 the noisiest.
    """

    ratio: float = 0.5
    stride: int = 2
    max_downsample: int = 1
    window: Window = (0.0, 1.0)
    merged: str = "all"
    layers: str = ""

    name = "PatchMerge"
    on_attention = False  # merging is not an edit: it acts in inversions too, by the guider

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= MOST_MERGED:
            raise PlanError(
                f"PatchMerge: ratio must be from 0 (off) to {MOST_MERGED}, got {self.ratio:g}; the "
                "published ratio is 0.8"
            )
        if self.stride < 2 or self.max_downsample < 1:
            raise PlanError(
                "PatchMerge: stride must be at least 2 and max_downsample at least 1, got "
                f"{self.stride} and {self.max_downsample}"
            )
        if self.merged not in MERGED:
            raise PlanError(f"PatchMerge: unknown choice {self.merged!r}; choose one of {MERGED}")
        start, end = check_window("PatchMerge: start and end", self.window)
        if start == end and self.ratio > 0:
            raise PlanError(
                f"PatchMerge would do nothing: its window starts and ends at {start:g}; widen it, "
                "or set the ratio to 0"
            )

    def __deepcopy__(self, memo: dict) -> "PatchMerge":
        return self

    def prepare(self, facts: RunFacts) -> Control:
        """Return a control that asks for nothing: whoever calls the model merges."""
        return Control()

    def select(self, sites: Sequence[Site]) -> frozenset[Site]:
        """Return the self-attention layers that are merged.

        Raises: BlockSelectionError when there are none.
        """
        chosen = select_sites(sites, "self", self.layers)
        near = {
            site for site in chosen
            if site.stage == "block" or site.downsample <= self.max_downsample
        }  # fmt: skip
        if not near:
            levels = sorted({site.downsample for site in chosen})
            raise BlockSelectionError(
                f"PatchMerge: no self-attention layer at max_downsample {self.max_downsample}; "
                f"this model's are at {', '.join(map(str, levels))}: raise it to {levels[0]}"
            )
        return frozenset(near)

    def levels(self, grid: Tensor) -> tuple[float, float]:
        """Return the window as noise levels (above, up to) of a run over a grid.

        grid: "steps+1", increasing; a step is known by the level it starts from.
        Raises: PlanError when no step lies in the window.
        """
        count = len(grid) - 1
        steps = window_steps(self.window, count)
        if not steps:
            raise PlanError(
                f"PatchMerge would do nothing: its window {self.window[0]:g} to "
                f"{self.window[1]:g} holds none of the {count} steps; widen it"
            )
        low = float("-inf") if steps.stop == count else float(grid[count - steps.stop])
        high = float("inf") if steps.start == 0 else float(grid[count - steps.start])
        return low, high

    def acts_at(self, sigma: float, grid: Tensor | None) -> bool:
        """Whether tokens are merged at a noise level of a run; without a grid at all levels."""
        if grid is None or self.window == (0.0, 1.0):
            return self.ratio > 0
        low, high = self.levels(grid)
        return self.ratio > 0 and low * (1 + ALIKE) < sigma <= high * (1 + ALIKE)


def assign_layers(
    merges: Sequence[PatchMerge], sites: Sequence[Site]
) -> tuple[tuple[PatchMerge, frozenset[Site]], ...]:
    """Return every PatchMerge with its layers.

    Raises: PlanError when two that overlap in their windows want one layer.
    """
    assigned: list[tuple[PatchMerge, frozenset[Site]]] = []
    for merge in merges:
        chosen = merge.select(sites)
        for other, taken in assigned:
            (a, b), (c, d) = merge.window, other.window
            if chosen & taken and max(a, c) < min(b, d):
                layer = min(map(str, chosen & taken))
                raise PlanError(
                    f"two PatchMerge nodes want the layer {layer} at the same steps; give them "
                    "other layers or windows, or remove one"
                )
        assigned.append((merge, chosen))
    return tuple(assigned)


def matching_seed(sigma: float, site: Site) -> int:
    """Return what destinations are drawn from: the level and the layer, and nothing else.

    An inversion and the edit that retraces it meet the same levels, so they share destinations.
    """
    return zlib.crc32(f"{sigma:.6g} {site.order}".encode())


class MergeCall:
    """Merging in one model call: at a layer's inputs, and back at its output.

    layers: how each layer is merged in this call. layout: of the call's rows.
    height, width: of the latent. merged: layers that were merged, with tokens before and after.
    """

    def __init__(
        self,
        layers: Mapping[Site, PatchMerge],
        layout: RowLayout,
        sigma: float,
        height: int,
        width: int,
    ) -> None:
        self.layers, self.layout, self.sigma = dict(layers), layout, sigma
        self.height, self.width = height, width
        self.merged: dict[Site, tuple[int, int]] = {}
        self._open: dict[Site, list[Matching]] = {}

    def inputs(
        self,
        site: Site,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        metric: Tensor | None = None,
        keys: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of a self-attention with similar tokens merged.

        query, key, value: "rows tokens channels" each, before or after their projections (which
        are linear, so the mean may be taken on either side); those of another length than the
        layer's grid (another pack's) are left as they are.
        metric: "rows tokens channels", what similarity is measured on; the queries if None.
        keys: False where keys and values have to stay on the grid.
        """
        self._open.pop(site, None)
        asked = self.layers.get(site)
        rows, columns = -(-self.height // site.downsample), -(-self.width // site.downsample)
        if asked is None or query.shape[1] != rows * columns or len(query) != self.layout.rows:
            return query, key, value
        metric = query if metric is None else metric
        matchings = self.match(asked, site, metric, rows, columns)
        done: dict[int, Tensor] = {}

        def merge(x: Tensor) -> Tensor:
            if x.shape[1] != rows * columns:
                return x
            if id(x) not in done:  # usually all three are one tensor
                done[id(x)] = merge_rows(matchings, x, Matching.merge)
            return done[id(x)]

        if keys and asked.merged != "queries":
            key, value = merge(key), merge(value)
        if asked.merged != "keys and values":
            self._open[site] = matchings
            query = merge(query)
        if done:
            self.merged[site] = (rows * columns, matchings[0].merged_tokens)
        return query, key, value

    def match(
        self, asked: PatchMerge, site: Site, x: Tensor, rows: int, columns: int
    ) -> list[Matching]:
        """Return one matching an image, made from the mean sketch of the image's rows."""
        with torch.no_grad():
            metric = sketch(x.detach()).unflatten(0, (-1, self.layout.images)).mean(0)
        seed = matching_seed(self.sigma, site)
        return [
            match_tokens(image, rows, columns, asked.ratio, asked.stride, seed) for image in metric
        ]

    def output(self, site: Site, out: Tensor) -> Tensor:
        """Return a self-attention's output "rows tokens channels" at all of the layer's places."""
        matchings = self._open.pop(site, None)
        return out if matchings is None else merge_rows(matchings, out, Matching.unmerge)
