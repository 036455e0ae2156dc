"""Single steps against closed forms, a textbook DDIM, and their order of convergence."""

from itertools import pairwise

import pytest
import torch
from helpers_closed_form import (
    flow_denoise,
    flow_path,
    gaussian_denoise,
    gaussian_path,
    geometric_grid,
    latent,
    maximum,
    order_of,
)
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.schedule import scaled_linear_abar, to_sigma
from retrace.diffusion.steps import (
    guide,
    refine_fixed_point,
    refine_renoise,
    rescale,
    step_euler,
    step_invert_ddim,
    to_d,
)

STD, STEPS = 1.3, (32, 64, 128, 256)


def euler_error(steps: int, up: bool) -> float:
    grid = geometric_grid(0.05, 10.0, steps)
    levels = grid if up else grid.flip(0)
    denoise, x = gaussian_denoise(STD), latent()
    expected = gaussian_path(x, levels[0], levels[-1], STD)
    for sigma, sigma_next in pairwise(levels):
        x = step_euler(x, denoise(x, sigma), sigma, sigma_next)
    return maximum(x, expected)


@pytest.mark.parametrize("up", [True, False])
def test_euler_is_first_order(up):
    order = order_of(STEPS, [euler_error(steps, up) for steps in STEPS])
    assert 0.9 < order < 1.1


@pytest.mark.parametrize("evaluate_at", ["next", "current"])
def test_inverting_ddim_is_first_order(evaluate_at):
    def error(steps: int) -> float:
        grid, x, denoise = geometric_grid(0.05, 10.0, steps), latent(), gaussian_denoise(STD)
        expected = gaussian_path(x, grid[0], grid[-1], STD)
        for sigma, sigma_next in pairwise(grid):
            x = step_invert_ddim(x, denoise, sigma, sigma_next, evaluate_at=evaluate_at)
        return maximum(x, expected)

    assert 0.9 < order_of(STEPS, [error(steps) for steps in STEPS]) < 1.1


@pytest.mark.parametrize("evaluate_at", ["next", "current"])
def test_inverting_a_rectified_flow_is_first_order(evaluate_at):
    def error(steps: int) -> float:
        grid = torch.linspace(0.02, 0.98, steps + 1, dtype=torch.float64)
        x, denoise = latent(), flow_denoise(STD)
        expected = flow_path(x, grid[0], grid[-1], STD)
        for sigma, sigma_next in pairwise(grid):
            x = step_invert_ddim(x, denoise, sigma, sigma_next, evaluate_at=evaluate_at, flow=True)
        return maximum(x, expected)

    assert 0.9 < order_of(STEPS, [error(steps) for steps in STEPS]) < 1.1


def test_euler_is_ddim_of_the_papers_in_other_coordinates():
    """Textbook: z' = a' (z - s eps) / a + s' eps, with a = sqrt(abar), s = sqrt(1 - abar)."""
    abar = scaled_linear_abar()
    start, end = abar[981], abar[961]
    z, eps = latent(seed=1), latent(seed=2)
    expected = end.sqrt() * (z - (1 - start).sqrt() * eps) / start.sqrt() + (1 - end).sqrt() * eps
    x = z / start.sqrt()
    sigma, sigma_next = to_sigma(start), to_sigma(end)
    stepped = step_euler(x, x - sigma * eps, sigma, sigma_next)
    assert maximum(stepped * end.sqrt(), expected) < 1e-12


def test_the_map_there_and_back_is_the_identity_between_all_published_neighbours():
    abar = scaled_linear_abar()
    sigmas = to_sigma(torch.cat([abar[:1], abar[1::20]]))
    x, eps = latent(), latent(seed=3)
    for low, high in pairwise(sigmas):
        up = step_euler(x, x - low * eps, low, high)
        back = step_euler(up, up - high * eps, high, low)
        assert maximum(back, x) < 1e-12


def test_next_asks_with_the_same_variance_preserving_latent_under_the_next_label():
    asked = []

    def denoise(x, sigma):
        asked.append((x / (1 + sigma**2).sqrt(), sigma))
        return torch.zeros_like(x)

    x, sigma, sigma_next = latent(), torch.tensor(0.5).double(), torch.tensor(2.0).double()
    step_invert_ddim(x, denoise, sigma, sigma_next)
    (z, level), = asked
    assert level == sigma_next
    assert maximum(z, x / (1 + sigma**2).sqrt()) < 1e-15


def test_current_asks_where_x_is():
    asked = []

    def denoise(x, sigma):
        asked.append((x, sigma))
        return torch.zeros_like(x)

    x, sigma, sigma_next = latent(), torch.tensor(0.5).double(), torch.tensor(2.0).double()
    step_invert_ddim(x, denoise, sigma, sigma_next, evaluate_at="current")
    assert asked[0][0] is x and asked[0][1] == sigma


def test_another_label_rule_is_refused():
    one = torch.tensor(1.0)
    with pytest.raises(ScheduleError, match="'next' or 'current'"):
        step_invert_ddim(latent(), gaussian_denoise(1.0), one, one * 2, evaluate_at="later")


def test_the_derivative_at_zero_is_refused():
    with pytest.raises(ScheduleError, match="sigma 0"):
        to_d(latent(), latent(), torch.tensor(0.0))


def test_fixed_points_are_exact_inverses_of_the_sampling_step():
    denoise, x = gaussian_denoise(STD), latent()
    sigma, sigma_next = torch.tensor(0.5).double(), torch.tensor(0.9).double()
    guess = step_invert_ddim(x, denoise, sigma, sigma_next)
    x_next, residual = refine_fixed_point(x, guess, denoise, sigma, sigma_next, 60)
    assert residual < 1e-12
    assert maximum(step_euler(x_next, denoise(x_next, sigma_next), sigma_next, sigma), x) < 1e-12


def test_no_iterations_change_nothing():
    one = torch.tensor(1.0)
    guess = latent()
    x_next, residual = refine_fixed_point(latent(), guess, gaussian_denoise(1.0), one, one * 2, 0)
    assert x_next is guess and residual == 0.0


def test_rescale_keeps_the_variance_preserving_latent():
    x, a, b = latent(), torch.tensor(0.3).double(), torch.tensor(4.0).double()
    assert maximum(rescale(x, a, b) / (1 + b**2).sqrt(), x / (1 + a**2).sqrt()) < 1e-15


def test_guidance_of_one_is_the_conditional_prediction():
    cond, uncond = latent(seed=1), latent(seed=2)
    assert torch.equal(guide(cond, uncond, 1.0), cond)


def test_guidance_is_the_textbook_extrapolation():
    cond, uncond = latent(seed=1), latent(seed=2)
    assert maximum(guide(cond, uncond, 7.5), uncond + 7.5 * (cond - uncond)) < 1e-13


def test_renoising_with_one_iteration_is_one_fixed_point_iteration():
    denoise, x, guess = gaussian_denoise(STD), latent(), latent(seed=1)
    sigma, sigma_next = torch.tensor(0.5).double(), torch.tensor(0.9).double()
    averaged, _ = refine_renoise(x, guess, denoise, sigma, sigma_next, 1)
    assert maximum(averaged, refine_fixed_point(x, guess, denoise, sigma, sigma_next, 1)[0]) < 1e-14


def test_renoising_averages_the_later_predictions():
    """Textbook: z_k = z + (s' - s) eps_k; eps_3 and eps_4 of four are averaged."""
    denoise, x, z = gaussian_denoise(STD), latent(), latent(seed=1)
    sigma, sigma_next = torch.tensor(0.5).double(), torch.tensor(0.9).double()
    start, eps, width = z, [], sigma_next - sigma
    for _ in range(4):
        eps.append((z - denoise(z, sigma_next)) / sigma_next)
        z = x + width * eps[-1]
    averaged, residual = refine_renoise(x, start, denoise, sigma, sigma_next, 4)
    assert maximum(averaged, x + width * (eps[2] + eps[3]) / 2) < 1e-14
    assert residual > 0


def test_renoising_comes_closer_to_the_inverse_than_its_guess():
    denoise, x = gaussian_denoise(STD), latent()
    sigma, sigma_next = torch.tensor(0.5).double(), torch.tensor(0.9).double()
    guess = step_invert_ddim(x, denoise, sigma, sigma_next)

    def error(y):
        return maximum(step_euler(y, denoise(y, sigma_next), sigma_next, sigma), x)

    averaged, _ = refine_renoise(x, guess, denoise, sigma, sigma_next, 6)
    assert error(averaged) < 0.1 * error(guess)
