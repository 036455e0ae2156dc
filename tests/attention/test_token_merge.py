"""Matching and merging of tokens, against matchings written out by hand."""

import pytest
import torch
from retrace.attention import token_merge
from retrace.attention.token_merge import (
    Matching,
    cell_side,
    destinations,
    match_tokens,
    means_by_index,
    means_by_segment,
    merge_rows,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tokens(rows, columns, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows * columns, channels, generator=generator)


def textbook_groups(metric, targets, away):
    """Return {destination: its tokens} of a bipartite matching, from the whole similarity."""
    metric = metric.double() / metric.double().norm(dim=1, keepdim=True)
    similarity = metric @ metric.T
    found = []
    for source in range(len(metric)):
        if source not in targets:
            best = max(targets, key=lambda target: float(similarity[source, target]))
            found.append((float(similarity[source, best]), source, best))
    found.sort(reverse=True)
    groups = {target: [target] for target in targets}
    for _, source, best in found[:away]:
        groups[best].append(source)
    return groups


@pytest.mark.parametrize(("rows", "columns", "ratio", "stride"), [
    (8, 8, 0.5, 2), (8, 8, 0.8, 2), (7, 5, 0.3, 2), (9, 6, 0.75, 2), (6, 11, 0.6, 3),
])  # fmt: skip
def test_merging_is_that_of_a_bipartite_matching_on_the_whole_similarity(
    rows, columns, ratio, stride
):
    metric, away = tokens(rows, columns), int(ratio * rows * columns)
    side = cell_side(rows, columns, away, stride)
    targets = destinations(rows, columns, side, seed=3).tolist()
    groups = textbook_groups(metric, targets, away)
    x = torch.randn(2, rows * columns, 4, generator=torch.Generator().manual_seed(1))
    expected = x.clone()
    for members in groups.values():
        expected[:, members] = x[:, members].mean(1, keepdim=True)
    matching = match_tokens(metric, rows, columns, ratio, stride, seed=3)
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), expected)


SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (8, 8), (13, 6)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 0.8, 0.9])
def test_exactly_the_ratio_of_tokens_goes_and_every_token_has_one_place(rows, columns, ratio):
    count = rows * columns
    matching = match_tokens(tokens(rows, columns), rows, columns, ratio, 2, seed=0)
    assert matching.merged_tokens == count - int(ratio * count)
    every = torch.cat([matching.alone, matching.members])
    assert every.sort().values.tolist() == list(range(count))
    assert int(matching.sizes.sum()) == len(matching.members)
    x = tokens(rows, columns)[None]
    assert matching.merge(x).shape == (1, matching.merged_tokens, 12)
    assert matching.unmerge(matching.merge(x)).shape == x.shape


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_ratio_zero_gives_every_token_back_bit_for_bit(rows, columns):
    x = tokens(rows, columns)[None]
    matching = match_tokens(x[0], rows, columns, 0.0, 2, seed=0)
    assert torch.equal(matching.unmerge(matching.merge(x)), x)


def test_tokens_that_are_all_alike_lose_nothing():
    x = tokens(1, 1)[None].expand(3, 64, 12)
    matching = match_tokens(x[0], 8, 8, 0.8, 2, seed=0)
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), x.contiguous())


def test_duplicates_are_merged_with_each_other_and_nothing_else():
    patches = torch.eye(16).repeat_interleave(4, 0)  # 16 kinds of token, 4 of each
    grid = patches.view(4, 4, 2, 2, 16).transpose(1, 2).reshape(64, 16)  # a kind fills a cell
    matching = match_tokens(grid, 8, 8, 0.75, 2, seed=5)
    assert matching.merged_tokens == 16
    assert torch.equal(matching.unmerge(matching.merge(grid[None])), grid[None])


@pytest.mark.parametrize(("ratio", "stride", "side"), [
    (0.5, 2, 2), (0.75, 2, 2), (0.8, 2, 3), (0.8, 4, 4), (0.9, 2, 4),
])  # fmt: skip
def test_cells_grow_only_where_the_ratio_needs_it(ratio, stride, side):
    assert cell_side(64, 128, int(ratio * 64 * 128), stride) == side


@pytest.mark.parametrize(("rows", "columns", "side"), [(8, 8, 2), (7, 9, 3), (2, 9, 4), (1, 5, 2)])
def test_every_whole_cell_has_one_destination_inside_it(rows, columns, side):
    found = destinations(rows, columns, side, seed=11)
    down, across = max(rows // side, 1), max(columns // side, 1)
    cells = {(int(n) // columns // side, int(n) % columns // side) for n in found}
    assert cells == {(i, j) for i in range(down) for j in range(across)}
    assert len(found) == down * across


def test_destinations_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    drawn = [destinations(16, 16, 2, seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_input_gives_the_same_matching_even_where_similarities_are_equal():
    for metric in (tokens(9, 9), torch.ones(81, 4)):
        first, again = (match_tokens(metric, 9, 9, 0.6, 2, seed=4) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Largest(TorchDispatchMode):
    """The most elements that any one operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("channels", [8, 64])
def test_no_similarity_of_all_tokens_is_ever_in_memory(channels):
    rows, columns = 64, 128  # 1024 x 2048 pixels of a transformer
    metric = tokens(rows, columns, channels)
    with Largest() as largest:
        matching = match_tokens(metric, rows, columns, 0.8, 2, seed=0)
        matching.unmerge(matching.merge(metric[None]))
    allowed = max(rows * columns * channels, token_merge.SMALLEST_PIECE, 2 * rows * columns)
    assert largest.elements <= allowed
    assert largest.elements <= (rows * columns) ** 2 / 100


def test_pieces_of_the_similarity_give_what_the_whole_gives(monkeypatch):
    metric = tokens(12, 10)
    whole = match_tokens(metric, 12, 10, 0.6, 2, seed=0)
    monkeypatch.setattr(token_merge, "SMALLEST_PIECE", 1)
    pieces = match_tokens(metric, 12, 10, 0.6, 2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(pieces, whole, strict=True))


def smooth_tokens(rows, columns, channels, waves=24):
    """Return tokens like those of a picture: waves over the grid, mixed, bent, off the origin."""
    draw = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack([row.flatten() / rows, column.flatten() / columns], dim=1)
    speed = 8 * torch.pi * torch.randn(2, waves, generator=draw)
    waving = torch.cos(place @ speed + 6.28 * torch.rand(waves, generator=draw))
    mixed = torch.tanh(waving @ torch.randn(waves, channels, generator=draw) / 3)
    return mixed + 2 * torch.randn(channels, generator=draw)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_a_sketch_of_many_channels_merges_hardly_worse_than_all_of_them(ratio):
    x = smooth_tokens(32, 32, 1152)

    def lost(metric):
        matching = match_tokens(metric, 32, 32, ratio, 2, seed=3)
        return float((matching.unmerge(matching.merge(x[None])) - x).norm())

    assert lost(token_merge.sketch(x)) <= 1.05 * lost(x)


@pytest.mark.parametrize("channels", [65, 192, 320])
def test_a_sketch_keeps_inner_products_on_average_within_its_variance(channels):
    pairs = torch.randn(2, 4000, channels, generator=torch.Generator().manual_seed(1))
    pairs[1] += pairs[0]
    short = token_merge.sketch(pairs.flatten(0, 1)).view(2, 4000, 64)
    error = (short[0] * short[1]).sum(1) - (pairs[0] * pairs[1]).sum(1)
    size = pairs[0].norm(dim=1) * pairs[1].norm(dim=1)
    assert abs(float((error / size).mean())) <= 0.01
    assert float((error / size).square().mean()) <= 2 / 64


def test_few_channels_are_no_sketch():
    metric = tokens(4, 4, 64)
    assert token_merge.sketch(metric) is metric


def test_both_ways_of_taking_means_agree():
    x, sizes = torch.randn(3, 20, 5, dtype=torch.float64), torch.tensor([1, 7, 3, 9])
    expected = torch.stack([part.mean(1) for part in x.split(sizes.tolist(), dim=1)], dim=1)
    torch.testing.assert_close(means_by_index(x, sizes), expected)
    torch.testing.assert_close(means_by_segment(x, sizes), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_many_tokens_in_low_precision_are_rounded_once(dtype):
    x = torch.randn(1, 4096, 3, generator=torch.Generator().manual_seed(0)).to(dtype) + 10
    means = token_merge.group_means(x, torch.tensor([4095, 1]))
    assert torch.equal(means[:, 0], x[:, :4095].double().mean(1).float().to(dtype))


def test_merging_behind_a_linear_layer_is_merging_before_it():
    x, matching = tokens(8, 8)[None], match_tokens(tokens(8, 8), 8, 8, 0.7, 2, seed=0)
    layer = torch.nn.Linear(12, 7)
    torch.testing.assert_close(matching.merge(layer(x)), layer(matching.merge(x)))


def test_every_image_has_its_own_matching_and_all_its_rows_share_it():
    images = [tokens(6, 6, seed=n) for n in range(2)]
    matchings = [match_tokens(image, 6, 6, 0.5, 2, seed=0) for image in images]
    x = torch.randn(6, 36, 4, generator=torch.Generator().manual_seed(9))  # three roles
    merged = merge_rows(matchings, x, Matching.merge)
    for row in range(6):
        assert torch.equal(merged[row], matchings[row % 2].merge(x[row][None])[0])
    assert not torch.equal(matchings[0].place, matchings[1].place)


def test_gradients_flow_through_merging_and_back():
    matching = match_tokens(tokens(3, 4), 3, 4, 0.5, 2, seed=0)
    x = torch.randn(1, 12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: matching.unmerge(matching.merge(y) ** 2), (x,))
