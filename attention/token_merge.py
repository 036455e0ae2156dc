"""Merging of similar tokens of one image: a bipartite matching, and what it does to tensors.

Source: Bolya et al. 2023, Token Merging (arXiv:2210.09461, arXiv:2303.17604), Sec. 3: cells of a
grid give destinations, every other token its most similar destination, the most similar ones are
merged by their mean and copied back after. Changed: cells grow until the ratio can be met; the
similarity is made in pieces, on a sketch of the channels; one matching serves all rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_PIECE = 2**18
"""Entries of the similarity that are made at once at least; more where the tokens take more."""

SKETCH = 64
"""Channels that similarity is measured on at most: with all 1152 of PixArt-XL, matching would cost
eighteen times as much and hardly find other pairs (docs/benchmarks.md)."""


class Matching(NamedTuple):
    """Which tokens of an image become one; token numbers count the grid row by row.

    alone: "alone", tokens that stay as they are, in order.
    members: "members", the tokens of groups, group by group. sizes: "groups", how many each has.
    place: "tokens", where each token is found after merging: those alone first, then the groups.
    """

    alone: Tensor
    members: Tensor
    sizes: Tensor
    place: Tensor

    @property
    def merged_tokens(self) -> int:
        return len(self.alone) + len(self.sizes)

    def merge(self, x: Tensor) -> Tensor:
        """Return x "rows tokens channels" with every group replaced by its mean."""
        groups = group_means(x.index_select(1, self.members), self.sizes)
        return torch.cat([x.index_select(1, self.alone), groups], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Return y "rows merged_tokens channels" at all places: each token gets its group's."""
        return y.index_select(1, self.place)


def group_means(x: Tensor, sizes: Tensor) -> Tensor:
    """Return the means of consecutive groups of tokens, "rows groups channels".

    Low precision is summed in float32. Sums are made in a fixed order on every device: of the
    two ways the first is several times faster on the CPU and has no fixed order elsewhere.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    means = means_by_index if x.device.type == "cpu" else means_by_segment
    return means(wide, sizes).to(x.dtype)


def means_by_index(x: Tensor, sizes: Tensor) -> Tensor:
    """Return the means of consecutive groups by adding every token to its group's place."""
    group = torch.arange(len(sizes), device=x.device).repeat_interleave(sizes)
    total = x.new_zeros(len(x), len(sizes), x.shape[2]).index_add(1, group, x)
    return total / sizes[:, None]


def means_by_segment(x: Tensor, sizes: Tensor) -> Tensor:
    """Return the means of consecutive groups by reducing each of them on its own."""
    lengths = sizes.expand(len(x), -1).contiguous()
    return torch.segment_reduce(x, "mean", lengths=lengths, axis=1, unsafe=True)


@torch.no_grad()
def match_tokens(
    metric: Tensor, rows: int, columns: int, ratio: float, stride: int, seed: int
) -> Matching:
    """Match the tokens of one image so that int(ratio tokens) of them are merged away.

    metric: "tokens channels" (tokens = rows * columns), compared by its cosine; see `sketch`.
    stride: side of a cell, grown where the ratio needs more; seed: of the destinations' places.
    Equal similarities are ordered by token number, so the same input gives the same matching.
    """
    tokens = rows * columns
    away = int(ratio * tokens)
    cell = cell_side(rows, columns, away, stride)
    targets = destinations(rows, columns, cell, seed)
    is_source = torch.ones(tokens, dtype=torch.bool)
    is_source[targets] = False  # on the CPU, where nothing waits for the device
    sources, targets = is_source.nonzero()[:, 0].to(metric.device), targets.to(metric.device)
    unit = unit_vectors(metric)
    score, best = best_targets(unit[sources], unit[targets])
    order = score.argsort(descending=True, stable=True)
    merged, alone = order[:away], order[away:].sort().values
    return group_tokens(tokens, sources[alone], sources[merged], targets, best[merged])


def cell_side(rows: int, columns: int, away: int, stride: int) -> int:
    """Return the smallest side of a cell, from `stride` on, that leaves `away` tokens to merge."""
    side = stride
    while rows * columns - cells(rows, side) * cells(columns, side) < away:
        side += 1
    return side


def cells(length: int, side: int) -> int:
    """Return how many whole cells fit along one side of the grid, at least one."""
    return max(length // side, 1)


def destinations(rows: int, columns: int, side: int, seed: int) -> Tensor:
    """Return one token number a cell, at a place in it drawn from the seed; on the CPU.

    Rows and columns that no whole cell covers hold no destination.
    """
    down, across = cells(rows, side), cells(columns, side)
    height, width = min(side, rows), min(side, columns)
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(height * width, (down, across), generator=generator)
    row = torch.arange(down)[:, None] * side + place // width
    column = torch.arange(across)[None] * side + place % width
    return (row * columns + column).flatten()


def sketch(metric: Tensor, channels: int = SKETCH) -> Tensor:
    """Return "... channels" sums of signed groups of channels, float32; few stay as they are.

    Inner products are kept on average, with a variance of at most 2 |a|^2 |b|^2 / channels.
    Source: Weinberger et al. 2009 (arXiv:0902.2206), Lemma 2, with groups of equal size.
    """
    many = metric.shape[-1]
    if many <= channels:
        return metric
    signs = torch.randint(2, (many,), generator=torch.Generator().manual_seed(many)) * 2.0 - 1
    signs = signs.to(metric.device)
    total = metric.new_zeros(*metric.shape[:-1], channels, dtype=torch.float32)
    for start in range(0, many, channels):  # in place: to make all signed channels costs more
        part = metric[..., start : start + channels]
        total[..., : part.shape[-1]].addcmul_(part, signs[start : start + channels])
    return total


def unit_vectors(metric: Tensor) -> Tensor:
    """Return vectors of length one: float32 on the CPU, else half where the metric is in half.

    bfloat16 is too coarse between 0.99 and 1, where most similarities of an image lie.
    """
    unit = F.normalize(metric.float(), dim=-1)
    half = metric.device.type != "cpu" and metric.dtype in (torch.float16, torch.bfloat16)
    return unit.half() if half else unit


def best_targets(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return every source's highest similarity and the number of the target that has it.

    sources, targets: "tokens channels". Never more of the similarity is in memory than the
    tokens themselves take, or `SMALLEST_PIECE`.
    """
    entries = max((len(sources) + len(targets)) * sources.shape[1], SMALLEST_PIECE)
    piece = max(entries // len(targets), 1)
    found = [(part @ targets.T).max(dim=1) for part in sources.split(piece)]
    return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])


def group_tokens(
    tokens: int, alone: Tensor, merged: Tensor, targets: Tensor, group: Tensor
) -> Matching:
    """Collect a matching: merged[i] joins the group of targets[group[i]]."""
    numbers = torch.arange(len(targets), device=group.device)
    every = torch.cat([numbers, group])
    order = every.argsort(stable=True)
    members = torch.cat([targets, merged])[order]
    # without the bincount, whose CUDA form waits for the device
    sizes = torch.ones_like(numbers).scatter_add(0, group, torch.ones_like(group))
    place = torch.empty(tokens, dtype=torch.long, device=group.device)
    place[alone] = torch.arange(len(alone), device=group.device)
    place[members] = len(alone) + every[order]
    return Matching(alone, members, sizes, place)


def merge_rows(matchings: list[Matching], x: Tensor, change: Callable) -> Tensor:
    """Apply `Matching.merge` or `.unmerge` to rows of several images, one matching an image.

    x: "rows tokens channels", role by role, each with one row an image.
    """
    if len(matchings) == 1:
        return change(matchings[0], x)
    images = x.unflatten(0, (-1, len(matchings))).unbind(1)
    parts = [change(one, image) for one, image in zip(matchings, images, strict=True)]
    return torch.stack(parts, dim=1).flatten(0, 1)
