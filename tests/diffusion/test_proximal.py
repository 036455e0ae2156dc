"""Proximal guidance against its tables, and slerp against its geometry."""

import pytest
import torch
from retrace.diffusion.embeddings import slerp
from retrace.diffusion.errors import PlanError
from retrace.diffusion.proximal import dilate, edit_mask, pull, quantile_threshold, shrink

ONE = torch.tensor(1.0)


def test_soft_shrinks_by_the_threshold():
    delta = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    expected = torch.tensor([-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    assert torch.equal(shrink(delta, ONE, "soft"), expected)
    assert torch.equal(shrink(delta, ONE, "published-l0"), expected)


def test_hard_keeps_what_is_above_the_threshold():
    delta = torch.tensor([-3.0, -1.0, 0.5, 1.5])
    assert torch.equal(shrink(delta, ONE, "hard"), torch.tensor([-3.0, 0.0, 0.0, 1.5]))


def test_published_l1_flips_signs_as_the_reference_does():
    # (1, 2): d - 1; above 2: d - 2; (-2, -1): d + 2, positive; below -2: d + 2
    delta = torch.tensor([1.5, 2.5, -1.5, -2.5, 0.5, -0.5])
    expected = torch.tensor([0.5, 0.5, 0.5, -0.5, 0.0, 0.0])
    assert torch.equal(shrink(delta, ONE, "published-l1"), expected)


def test_quantile_of_both_rows_is_half_as_deep_in_the_target():
    delta = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = quantile_threshold(delta, 0.75, silent=1)
    alone = quantile_threshold(delta, 0.5)
    assert both.shape == (2, 1, 1, 1)
    assert torch.allclose(both, alone, atol=0.02)


def test_quantile_equals_torchs():
    delta = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = delta.abs().flatten(1).quantile(0.7, dim=1)
    assert torch.allclose(quantile_threshold(delta, 0.7).flatten(), expected)


def test_published_mask_asks_for_twice_the_threshold():
    delta = torch.tensor([0.5, 1.5, 2.5]).reshape(1, 1, 1, 3)
    soft = shrink(delta, ONE, "soft")
    assert edit_mask(delta, soft, ONE, "soft", 0).flatten().tolist() == [0, 1, 1]
    assert edit_mask(delta, soft, ONE, "published-l0", 0).flatten().tolist() == [0, 0, 1]


def test_dilation_grows_a_square():
    mask = torch.zeros(1, 1, 7, 7)
    mask[0, 0, 3, 3] = 1
    assert dilate(mask, 2).sum() == 25
    assert torch.equal(dilate(mask, 0), mask)


def test_pull_copies_the_inversion_outside_the_mask():
    x, anchor = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert torch.equal(pull(x, anchor, mask, 1.0), mask)
    assert torch.equal(pull(x, anchor, mask, 0.0), x)


def test_unknown_mode_is_refused():
    with pytest.raises(PlanError):
        shrink(ONE, ONE, "l2")


def test_slerp_ends_are_the_inputs():
    a, b = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    a, b = a[None].reshape(1, 3, 8), b.reshape(1, 3, 8)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)


def test_slerp_of_identical_vectors_is_that_vector():
    a = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, a.clone(), 0.4), a)


def test_slerp_keeps_the_length_between_vectors_of_one_length():
    a, b = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0)).reshape(2, 1, 3, 8)
    a, b = a / a.norm(), b / b.norm()
    assert abs(float(slerp(a, b, 0.3).norm()) - 1) < 1e-5
