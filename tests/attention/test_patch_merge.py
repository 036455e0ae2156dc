"""What PatchMerge asks of which layers and steps, and what one model call does with it."""

import pytest
import torch
from retrace.attention.patch_merge import MergeCall, PatchMerge, assign_layers, matching_seed
from retrace.attention.rows import SOURCE_COND, TARGET_COND, TARGET_UNCOND, RowLayout
from retrace.attention.sites import Site
from retrace.diffusion.errors import BlockSelectionError, PlanError

UNET = tuple(
    Site(kind, stage, index, 0, order, down)
    for kind in ("self", "cross")
    for order, (stage, index, down) in enumerate(
        [("input", 1, 1), ("input", 4, 2), ("middle", 0, 4), ("output", 5, 2), ("output", 9, 1)]
    )
)
DIT = tuple(Site(kind, "block", n, 0, n, 2) for n in range(4) for kind in ("self", "cross"))
FINEST = UNET[0]


@pytest.mark.parametrize("asked", [
    {"ratio": -0.1}, {"ratio": 0.95}, {"ratio": float("nan")}, {"stride": 1},
    {"max_downsample": 0}, {"window": (0.5, 0.2)}, {"window": (0.5, 0.5)}, {"merged": "values"},
])  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_asked_for(asked):
    with pytest.raises(PlanError, match=r"PatchMerge|fractions"):
        PatchMerge(**asked)


@pytest.mark.parametrize(("asked", "sites", "expected"), [
    ({}, UNET, [0, 4]),
    ({"max_downsample": 2}, UNET, [0, 1, 3, 4]),
    ({"max_downsample": 8}, UNET, [0, 1, 2, 3, 4]),
    ({"layers": "output", "max_downsample": 2}, UNET, [3, 4]),
    ({}, DIT, [0, 1, 2, 3]),
    ({"layers": "1-2"}, DIT, [1, 2]),
])
def test_levels_of_a_unet_and_ranges_of_blocks_are_chosen(asked, sites, expected):
    chosen = PatchMerge(**asked).select(sites)
    assert sorted(site.order for site in chosen) == expected
    assert all(site.kind == "self" for site in chosen)


@pytest.mark.parametrize("asked", [{"layers": "output.5"}, {"layers": "77"}, {"layers": "block"}])
def test_layers_that_are_not_there_are_named_with_what_is(asked):
    with pytest.raises(BlockSelectionError, match=r"raise it to 2|self layers are input"):
        PatchMerge(**asked).select(UNET)


@pytest.mark.parametrize(("window", "steps"), [
    ((0.0, 1.0), range(10)), ((0.0, 0.5), range(5)), ((0.3, 1.0), range(3, 10)),
    ((0.25, 0.6), range(2, 6)),
])  # fmt: skip
def test_a_window_acts_at_the_levels_its_steps_start_from(window, steps):
    grid = torch.linspace(0.03, 14.0, 11)
    merge = PatchMerge(window=window)
    acting = [merge.acts_at(float(grid[10 - step]), grid) for step in range(10)]
    assert acting == [step in steps for step in range(10)]
    assert merge.acts_at(float(grid[0]), grid) == (9 in steps)  # an inversion's first call


def test_a_window_that_holds_no_step_is_refused():
    with pytest.raises(PlanError, match="none of the 4 steps"):
        PatchMerge(window=(0.3, 0.4)).levels(torch.linspace(0, 1, 5))


def test_two_merges_may_share_a_model_but_not_a_layer_at_one_step():
    fine, coarse = PatchMerge(layers="0,4"), PatchMerge(layers="1,3", max_downsample=2)
    assert len(assign_layers([fine, coarse], UNET)) == 2
    early, late = PatchMerge(window=(0.0, 0.5)), PatchMerge(ratio=0.8, window=(0.5, 1.0))
    assert len(assign_layers([early, late], UNET)) == 2
    with pytest.raises(PlanError, match="two PatchMerge nodes want the layer self input"):
        assign_layers([fine, PatchMerge(window=(0.9, 1.0))], UNET)


def call(merged="all", roles=(TARGET_UNCOND, SOURCE_COND, TARGET_COND), images=1, **asked):
    layers = {FINEST: PatchMerge(merged=merged, **asked)}
    return MergeCall(layers, RowLayout(roles, images), sigma=1.5, height=5, width=6)


def hidden(rows, seed=0, length=30):
    return torch.randn(rows, length, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("merged", "lengths", "back"), [
    ("all", (15, 15, 15), 30), ("queries", (15, 30, 30), 30), ("keys and values", (30, 15, 15), 30),
])  # fmt: skip
def test_what_is_merged_is_what_was_asked_for_and_the_output_is_on_the_grid(merged, lengths, back):
    one, x = call(merged), hidden(3)
    inputs = one.inputs(FINEST, x, x.clone(), x.clone())
    assert tuple(part.shape[1] for part in inputs) == lengths
    assert one.output(FINEST, inputs[0]).shape == (3, back, 8)
    assert one.merged == {FINEST: (30, 15)}


def test_one_tensor_for_all_three_is_merged_once():
    x = hidden(3)
    query, key, value = call().inputs(FINEST, x, x, x)
    assert query is key is value


def test_all_rows_of_an_image_share_the_matching_of_their_mean():
    one, x = call(images=2), hidden(6)
    one.inputs(FINEST, x, x, x)
    places = one.output(FINEST, torch.arange(15.0)[None, :, None].expand(6, 15, 1))
    assert torch.equal(places[0], places[2]) and torch.equal(places[2], places[4])
    assert not torch.equal(places[0], places[1])
    alone = call(images=1, roles=(TARGET_COND,))
    mean = x[0::2].mean(0, keepdim=True)
    alone.inputs(FINEST, mean, mean, mean)
    expected = alone.output(FINEST, torch.arange(15.0)[None, :, None])
    assert torch.equal(places[0], expected[0])


def test_rows_that_are_swapped_before_or_after_merging_are_the_same():
    x, one = hidden(3), call()
    swapped, _, value = one.inputs(FINEST, x[[0, 1, 1]], x, x, metric=x)
    plain, _, _ = call().inputs(FINEST, x, x, x)
    assert torch.equal(swapped, plain[[0, 1, 1]]) and torch.equal(value, plain)


def test_layers_and_lengths_that_are_not_meant_are_left_alone():
    x, longer = hidden(3), hidden(3, length=40)
    for site, parts in ((UNET[1], (x, x, x)), (FINEST, (longer, longer, longer))):
        one = call()
        found = one.inputs(site, *parts)
        assert all(a is b for a, b in zip(found, parts, strict=True))
        assert one.output(site, parts[0]) is parts[0] and not one.merged
    query, key, value = call().inputs(FINEST, x, longer, longer)  # keys that a pack appended
    assert query.shape[1] == 15 and key is longer and value is longer


def test_keys_that_must_stay_on_their_grid_stay():
    x = hidden(3)
    query, key, _ = call().inputs(FINEST, x, x, x, keys=False)
    assert query.shape[1] == 15 and key is x


def test_destinations_belong_to_a_level_and_a_layer():
    seeds = {matching_seed(sigma, site) for sigma in (1.0, 2.0) for site in UNET[:3]}
    assert len(seeds) == 6
    assert matching_seed(1.0, FINEST) == matching_seed(1.0 + 1e-9, FINEST)


def test_a_copy_of_what_was_asked_is_itself():
    from copy import deepcopy

    merge = PatchMerge()
    assert deepcopy(merge) is merge
