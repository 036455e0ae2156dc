"""Regularised inversion: the published losses and gradients, and what the corrections do."""

import pytest
import torch
from helpers_closed_form import gaussian_denoise, latent, maximum
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.regularise import (
    auto_correlation,
    gradient,
    kl_divergence,
    random_shifts,
    regularise,
    regularised,
)


def replay(rolls):
    amounts = iter(rolls)
    return lambda size: next(amounts)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_published_loss_and_its_gradient_are_reproduced(golden, size):
    tensors, facts = golden("pix2pix_zero/losses")
    x, rolls = tensors[f"x_{size}"], facts[f"rolls_seed7_{size}"]
    loss = auto_correlation(x, replay(rolls), "published")
    slope = gradient(lambda e: auto_correlation(e, replay(rolls), "published"), x)
    assert abs(float(loss) - facts[f"auto_corr_loss_seed7_{size}"]) < 1e-6
    assert maximum(slope, tensors[f"grad_ac_seed7_{size}"]) < 1e-7


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_published_loss_without_random_shifts_is_reproduced(golden, size):
    tensors, facts = golden("pix2pix_zero/losses")
    loss = auto_correlation(tensors[f"x_{size}"], lambda _: 1, "published")
    assert abs(float(loss) - facts[f"auto_corr_loss_noshift_{size}"]) < 1e-7


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_published_divergence_and_its_gradient_are_reproduced(golden, size):
    tensors, facts = golden("pix2pix_zero/losses")
    x = tensors[f"x_{size}"]
    assert abs(float(kl_divergence(x)) - facts[f"kl_{size}"]) < 1e-6
    assert maximum(gradient(kl_divergence, x), tensors[f"grad_kl_{size}"]) < 1e-8


def test_the_divergence_is_zero_for_unit_noise_only():
    unit = latent(size=32)
    unit = (unit - unit.mean()) / unit.flatten().std()
    assert abs(float(kl_divergence(unit))) < 1e-6
    assert float(kl_divergence(2 * unit)) > 1 and float(kl_divergence(unit + 1)) > 0.9


def test_pooled_white_noise_keeps_unit_variance_only_in_the_fixed_variant():
    """With shift 0 the loss is the squared variance of each level: one per axis and level."""
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)).double()
    fixed = float(auto_correlation(noise, lambda _: 0, "fixed"))
    published = float(auto_correlation(noise, lambda _: 0, "published"))
    assert abs(fixed - 2 * 6) < 2.0
    assert abs(published - 2 * (1 + 1 / 16 + 1 / 256)) < 0.2


def test_only_the_published_shifts_can_be_zero():
    fixed, published = random_shifts(0), random_shifts(0, "published")
    assert min(fixed(16) for _ in range(300)) == 1 and max(fixed(16) for _ in range(300)) == 7
    assert min(published(16) for _ in range(300)) == 0


def test_shifts_come_from_their_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = [random_shifts(3)(64) for _ in range(4)]
    assert first == [random_shifts(3)(64) for _ in range(4)]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (2, 4, 16, 24), (1, 4, 15, 17)])
@pytest.mark.parametrize("variant", ["fixed", "published"])
def test_noise_comes_out_whiter(shape, variant):
    def loss(e):
        return float(auto_correlation(e, lambda _: 1, variant) + kl_divergence(e))

    eps = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.6
    calmed = regularise(eps, random_shifts(0, variant), variant)
    assert loss(calmed) < 0.8 * loss(eps)


def test_images_of_a_batch_do_not_touch_each_other():
    eps = latent(2, size=16)
    both = regularise(eps, lambda _: 3)
    assert maximum(both[:1], regularise(eps[:1], lambda _: 3)) < 1e-10


def test_it_works_where_gradients_are_forbidden():
    with torch.inference_mode():
        eps = latent(size=16)
        calmed = regularise(eps, lambda _: 3)
    assert maximum(calmed, regularise(latent(size=16), lambda _: 3)) == 0


def test_no_rounds_change_nothing():
    eps = latent()
    assert regularise(eps, lambda _: 1, rounds=0) is eps


def test_the_wrapped_denoiser_predicts_the_regularised_noise():
    x, sigma = latent(size=16), torch.tensor(2.0).double()
    plain = gaussian_denoise(1.3)
    calm = regularised(plain, lambda _: 2)(x, sigma)
    expected = regularise((x - plain(x, sigma)) / sigma, lambda _: 2)
    assert maximum((x - calm) / sigma, expected) < 1e-12


def test_a_rectified_flow_is_refused():
    with pytest.raises(ScheduleError, match="rectified-flow"):
        regularised(gaussian_denoise(1.0), lambda _: 1, flow=True)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ScheduleError, match="'better'"):
        regularised(gaussian_denoise(1.0), lambda _: 1, "better")
