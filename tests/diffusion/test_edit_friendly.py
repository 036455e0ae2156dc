"""Edit-friendly DDPM and LEDITS++: replayed noises return the image; the papers' formulas."""

import pytest
import torch
from helpers_closed_form import gaussian_denoise, latent, maximum
from retrace.diffusion.edit import edit
from retrace.diffusion.edit_friendly import (
    draw_states,
    invert_edit_friendly,
    ledits_timesteps,
    posterior,
    posterior_2,
)
from retrace.diffusion.errors import ScheduleError, TrajectoryError
from retrace.diffusion.inversion import from_level
from retrace.diffusion.schedule import leading_sigmas, scaled_linear_abar, to_sigma
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

STD = 1.3
TABLE = to_sigma(scaled_linear_abar())
NAMES = {"ddpm": "ddpm", "sde-dpmpp-2": "sde_dpmpp_2"}


def make_trajectory(steps=10, kind="ddpm", batch=1, eta=1.0, grid=None, **options):
    grid = leading_sigmas(TABLE, steps).float() if grid is None else grid
    clean = latent(batch, dtype=torch.float32)
    states = sorted(invert_edit_friendly(gaussian_denoise(STD), clean, grid, kind=kind, eta=eta,
                                         **options), key=lambda s: s.index)
    noises = torch.stack([dict(s.kept)["noise"] for s in states[:0:-1]])
    return Trajectory(
        torch.stack([s.x for s in states]), grid, clean, ModelFacts("test", "eps", "none", 4),
        solver=NAMES[kind], noises=noises, extras=(("eta", torch.tensor(eta)),),
    )


def by_branch(x, sigma, step, wanted):
    std = {"source": STD, "target": 0.7}
    return {name: gaussian_denoise(std[name])(x[name], sigma) for name in wanted}


def end(trajectory, branch="source", **options):
    *_, last = edit(trajectory, by_branch, **options)
    return from_level(getattr(last, branch), last.sigma)


@pytest.mark.parametrize(("kind", "start"), [("ddpm", 0), ("ddpm", 3), ("sde-dpmpp-2", 0)])
@pytest.mark.parametrize("steps", [10, 50])
def test_replaying_the_noises_returns_the_image(kind, steps, start):
    trajectory = make_trajectory(steps, kind, batch=2)
    assert maximum(end(trajectory, start_step=start), trajectory.clean) < 1e-5


def test_order_two_begins_with_order_one_after_a_later_start():
    trajectory = make_trajectory(50, "sde-dpmpp-2")
    assert 0 < maximum(end(trajectory, start_step=5), trajectory.clean) < 0.2


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_any_eta_returns_the_image(eta):
    trajectory = make_trajectory(eta=eta)
    assert maximum(end(trajectory), trajectory.clean) < 1e-5


def test_a_schedule_that_ends_at_zero_returns_the_image_too():
    grid = torch.tensor([0.0, 0.1, 0.5, 2.0, 8.0])
    trajectory = make_trajectory(grid=grid)
    assert maximum(end(trajectory), trajectory.clean) < 1e-5


def test_a_zeroed_last_noise_loses_exactly_that_noise():
    kept, zeroed = make_trajectory(), make_trajectory(keep_last_noise=False)
    assert float(zeroed.noises[-1].abs().max()) == 0
    low, high = (float(s) for s in kept.sigmas[:2])
    deviation = low / high * (high**2 - low**2) ** 0.5
    lost = deviation * kept.noises[-1] / (1 + low**2) ** 0.5
    assert maximum(end(kept) - end(zeroed), lost) < 1e-5


def test_the_mean_is_the_papers_in_variance_preserving_coordinates():
    """Textbook: sqrt(abar') P + sqrt(1 - abar' - eta^2 var) eps, var of DDIM's Eq. 16."""
    abar = scaled_linear_abar()
    level, lower, eta = abar[501], abar[401], 0.6
    z, eps = latent(seed=1), latent(seed=2)
    prediction = (z - (1 - level).sqrt() * eps) / level.sqrt()
    var = (1 - lower) / (1 - level) * (1 - level / lower)
    expected = lower.sqrt() * prediction + (1 - lower - eta**2 * var).sqrt() * eps
    mean, deviation = posterior(
        z / level.sqrt(), prediction, to_sigma(level), to_sigma(lower), eta
    )
    assert maximum(mean * lower.sqrt(), expected) < 1e-12
    assert abs(deviation * float(lower.sqrt()) - eta * float(var.sqrt())) < 1e-12


def test_order_two_is_the_papers_in_variance_preserving_coordinates():
    """Textbook: (s_t/s_s) e^-h x + a_t (1 - e^-2h) (D0 + D1 / 2), noise s_t sqrt(1 - e^-2h)."""
    abar = scaled_linear_abar()[[601, 501, 401]]
    a, s = abar.sqrt(), (1 - abar).sqrt()
    lam = (a / s).log()
    z, before, data = latent(seed=1), latent(seed=2), latent(seed=3)
    h = lam[2] - lam[1]
    slope = (data - before) / ((lam[1] - lam[0]) / h)
    gain = a[2] * (1 - (-2 * h).exp())
    expected = s[2] / s[1] * (-h).exp() * z + gain * data + 0.5 * gain * slope
    sigmas = to_sigma(abar)
    mean, deviation = posterior_2(z / a[1], data, before, float(sigmas[0]), sigmas[1], sigmas[2])
    assert maximum(mean * a[2], expected) < 1e-12
    assert abs(deviation * float(a[2]) - float(s[2] * (1 - (-2 * h).exp()).sqrt())) < 1e-12


def test_noisy_versions_are_independent_across_levels():
    clean, grid = torch.zeros(1, 4, 64, 64), torch.tensor([0.0, 1.0, 2.0, 3.0])
    noises = [s / g for s, g in zip(draw_states(clean, grid, 0), grid[1:], strict=True)]
    correlation = torch.corrcoef(torch.stack([n.flatten() for n in noises]))
    assert float((correlation - torch.eye(3)).abs().max()) < 0.05


def test_a_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    assert torch.equal(make_trajectory(seed=4).noises, make_trajectory(seed=4).noises)
    assert not torch.equal(make_trajectory(seed=4).noises, make_trajectory(seed=5).noises)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", NAMES)
def test_direct_inversion_on_top_is_exact_and_leaves_the_target_alone(kind):
    free = make_trajectory(kind=kind)
    held = free.replace(source_rule=SourceRule(pinned=True))
    for a, b in zip(edit(free, by_branch), edit(held, by_branch), strict=True):
        assert torch.equal(b.source, held.latents[held.steps - b.step - 1])
        assert torch.equal(a.target, b.target)


def test_the_labels_of_ledits_skip_the_noisiest_part_of_the_range():
    labels = ledits_timesteps(50, 0.1)
    assert len(labels) == 50 and labels[0] == 1 and labels[-1] == 899


def test_too_many_labels_are_refused():
    with pytest.raises(ScheduleError, match="fewer steps"):
        ledits_timesteps(100, 0.95)


@pytest.mark.parametrize("options", [{"kind": "other"}, {"eta": 0.0}, {"eta": 1.5}, {"flow": True},
                                     {"kind": "sde-dpmpp-2", "eta": 0.5}, {"states": []}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ScheduleError):
        next(invert_edit_friendly(gaussian_denoise(1), latent(), torch.tensor([0.1, 1.0]),
                                  **options))


def test_a_trajectory_without_noises_is_refused():
    with pytest.raises(TrajectoryError, match="'noises'"):
        next(edit(make_trajectory().replace(noises=None), by_branch))
