"""Whole inversions: round trips, refinement, and the clean end of the published grid."""

from itertools import pairwise

import pytest
import torch
from helpers_closed_form import gaussian_denoise, geometric_grid, latent, maximum, order_of
from retrace.diffusion.inversion import from_level, invert_ddim, to_level
from retrace.diffusion.schedule import leading_sigmas, scaled_linear_abar, to_sigma
from retrace.diffusion.steps import step_euler

STD = 1.3


def walk_down(x, grid, denoise):
    """Plain Euler sampling from the noisy end: the textbook loop."""
    for sigma, sigma_next in pairwise(grid.flip(0)):
        x = step_euler(x, denoise(x, sigma), sigma, sigma_next)
    return x


def published_grid(steps):
    return leading_sigmas(to_sigma(scaled_linear_abar()), steps)


@pytest.mark.parametrize("evaluate_at", ["next", "current"])
def test_the_round_trips_error_falls_with_the_steps(evaluate_at):
    steps, errors, clean = (64, 128, 256, 512), [], latent()
    for count in steps:
        grid = geometric_grid(0.05, 10.0, count)
        denoise = gaussian_denoise(STD)
        *_, last = invert_ddim(denoise, clean, grid, evaluate_at=evaluate_at)
        errors.append(maximum(walk_down(last.x, grid, denoise), to_level(clean, grid[0])))
    assert order_of(steps, errors) > 0.9


def test_a_constant_eps_is_inverted_exactly():
    eps, clean = latent(seed=5), latent()

    def denoise(x, sigma):
        return x - sigma * eps

    grid = published_grid(10)
    *_, last = invert_ddim(denoise, clean, grid)
    back = from_level(walk_down(last.x, grid, denoise), grid[0])
    assert maximum(back, clean) < 1e-12


def test_a_linear_eps_follows_its_closed_form_under_both_labels():
    """eps = k z: every step multiplies z by a number that can be written down."""
    k, clean, grid = 0.3, latent(), published_grid(10)

    def denoise(x, sigma):
        return x - sigma * k * x / (1 + sigma**2).sqrt()

    factor = 1.0
    for s, s_next in pairwise(grid.tolist()):
        # x + (s' - s) k z with z = x / sqrt(1 + s^2) of this level, under either label
        factor *= 1 + (s_next - s) * k / (1 + s**2) ** 0.5
    start = to_level(clean, grid[0])
    *_, by_next = invert_ddim(denoise, clean, grid)
    *_, by_current = invert_ddim(denoise, clean, grid, evaluate_at="current")
    assert maximum(by_next.x, start * factor) < 1e-11
    assert maximum(by_current.x, start * factor) < 1e-11


def test_the_labels_differ_when_eps_knows_its_level():
    clean, grid = latent(), published_grid(10)
    *_, by_next = invert_ddim(gaussian_denoise(STD), clean, grid)
    *_, by_current = invert_ddim(gaussian_denoise(STD), clean, grid, evaluate_at="current")
    assert maximum(by_next.x, by_current.x) > 1e-2


def test_next_is_the_published_loop():
    """Textbook: z_v = Phi(z_u, eps(z_u, label v); u -> v), starting at abar[0]."""
    abar = scaled_linear_abar()
    denoise, clean = gaussian_denoise(STD), latent()

    def eps_of(z, level):
        sigma = to_sigma(level)
        x = z / level.sqrt()
        return (x - denoise(x, sigma)) / sigma

    z, previous = clean, abar[0]
    for label in range(1, 1000, 100):
        level = abar[label]
        eps = eps_of(z, level)
        z = level.sqrt() * (z - (1 - previous).sqrt() * eps) / previous.sqrt()
        z = z + (1 - level).sqrt() * eps
        previous = level
    *_, last = invert_ddim(denoise, clean, published_grid(10))
    assert maximum(last.x * abar[901].sqrt(), z) < 1e-11


def test_refinement_makes_the_round_trip_exact():
    clean, grid, denoise = latent(), published_grid(10), gaussian_denoise(STD)
    *_, last = invert_ddim(denoise, clean, grid, refine=100)
    assert maximum(from_level(walk_down(last.x, grid, denoise), grid[0]), clean) < 1e-8


def test_more_refinement_leaves_less_error():
    clean, grid, denoise = latent(), published_grid(20), gaussian_denoise(STD)

    def error(refine):
        *_, last = invert_ddim(denoise, clean, grid, refine=refine)
        return maximum(from_level(walk_down(last.x, grid, denoise), grid[0]), clean)

    assert error(0) > 3 * error(2) > 9 * error(5)


def test_a_grid_from_zero_asks_at_the_next_level_first():
    asked = []

    def denoise(x, sigma):
        asked.append(float(sigma))
        return torch.zeros_like(x)

    grid = torch.tensor([0.0, 1.0, 2.0]).double()
    list(invert_ddim(denoise, latent(), grid, evaluate_at="current"))
    assert asked == [1.0, 1.0]


def test_the_clean_end_stands_at_the_first_level_without_noise():
    clean, sigma = latent(), torch.tensor(0.02917).double()
    placed = to_level(clean, sigma)
    assert maximum(placed, clean * (1 + sigma**2).sqrt()) < 1e-15
    assert maximum(from_level(placed, sigma), clean) < 1e-15


def test_a_flow_starts_on_the_clean_latent_itself():
    clean = latent()
    assert to_level(clean, torch.tensor(0.0), flow=True) is clean
