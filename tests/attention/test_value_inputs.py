"""Changed values beside unchanged keys, row by row."""

import pytest
import torch
from retrace.attention.rows import SOURCE_COND, TARGET_COND, TARGET_UNCOND, RowLayout
from retrace.attention.value_inputs import map_loss, modulate, modulate_rows, total_loss
from retrace.diffusion.errors import PlanError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_only_the_rows_of_the_asked_roles_change():
    layout = RowLayout((TARGET_UNCOND, SOURCE_COND, TARGET_COND), images=2)
    value, change = random(6, 3, 4), random(2, 2, 3, 4, seed=1)
    found = modulate_rows(value, layout, {SOURCE_COND: change})
    assert torch.equal(found[[0, 1, 4, 5]], value[[0, 1, 4, 5]])
    for image in range(2):
        expected = value[2 + image] * change[image, 0] + change[image, 1]
        assert torch.equal(found[2 + image], expected)


def test_a_context_padded_by_repetition_gets_the_change_repeated():
    context, change = random(1, 3, 4), random(1, 2, 3, 4, seed=1)
    once = modulate(context, change)
    assert torch.equal(modulate(context.repeat(1, 2, 1), change), once.repeat(1, 2, 1))


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 3, 6)])
def test_a_prompt_of_another_length_or_width_is_refused(shape):
    with pytest.raises(PlanError, match="CLIP of the inversion"):
        modulate(random(*shape), random(1, 2, 3, 4))


def test_map_loss_is_the_mean_square_an_image():
    found, wanted = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)
    expected = torch.stack([((f - w) ** 2).mean() for f, w in zip(found, wanted, strict=True)])
    assert torch.allclose(map_loss(found, wanted), expected)


def test_total_of_no_layers_is_zero():
    assert torch.equal(total_loss({}, 2, random(1)), torch.zeros(2))
    assert torch.equal(total_loss({1: torch.ones(2), 2: torch.ones(2)}, 2, random(1)),
                       torch.full((2,), 2.0))
