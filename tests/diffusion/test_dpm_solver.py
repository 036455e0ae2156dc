"""DPM-Solver++ against closed forms: its order both ways, exact inverses, and the host's form."""

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
from retrace.diffusion.dpm_solver import DPMSolver, invert_dpm_solver, solve_step
from retrace.diffusion.edit import edit
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.inversion import to_level
from retrace.diffusion.schedule import leading_sigmas, scaled_linear_abar, to_sigma
from retrace.diffusion.steps import step_euler
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

STD, STEPS = 1.3, (32, 64, 128, 256)


def walk_down(solver, x, grid, denoise, flow=False):
    """Sample one branch from the noisy end of an increasing grid."""
    memory = {"flow": flow, "steps": len(grid) - 1}
    for step, (sigma, sigma_next) in enumerate(pairwise(grid.flip(0))):
        memory["step"] = step
        branches, _ = solver.step(
            {"target": x}, lambda b, s: {"target": denoise(b["target"], s)}, sigma, sigma_next,
            memory,
        )
        x = branches["target"]
    return x


def grid_of(steps, flow):
    if flow:
        return torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64)
    return geometric_grid(0.05, 10.0, steps)


def problem(flow):
    return (flow_denoise(STD), flow_path) if flow else (gaussian_denoise(STD), gaussian_path)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_sampling_has_its_order(order, flow):
    denoise, path = problem(flow)

    def error(steps):
        grid, x = grid_of(steps, flow), latent()
        end = walk_down(DPMSolver(order), x, grid, denoise, flow)
        return maximum(end, path(x, grid[-1], grid[0], STD))

    assert abs(order_of(STEPS, [error(steps) for steps in STEPS]) - order) < 0.15


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("order", "variant"), [(1, "fine"), (2, "fine"), (2, "cheap")])
def test_inversion_has_its_order(order, variant, flow):
    denoise, path = problem(flow)

    def error(steps):
        grid, x = grid_of(steps, flow), latent()
        *_, last = invert_dpm_solver(denoise, x, grid, order=order, variant=variant, flow=flow,
                                     iterations=100, tolerance=1e-12)
        return maximum(last.x, path(to_level(x, grid[0], flow), grid[0], grid[-1], STD))

    assert abs(order_of(STEPS, [error(steps) for steps in STEPS]) - order) < 0.2


def test_order_one_is_ddim():
    grid, x, denoise = geometric_grid(0.05, 10.0, 8), latent(), gaussian_denoise(STD)
    expected = x
    for sigma, sigma_next in pairwise(grid.flip(0)):
        expected = step_euler(expected, denoise(expected, sigma), sigma, sigma_next)
    assert maximum(walk_down(DPMSolver(1), x, grid, denoise), expected) < 1e-12


def test_order_two_is_the_papers_formula_in_variance_preserving_coordinates():
    """Textbook: x_t = (s_t / s_s) x_s - a_t (e^-h - 1) (D0 + D1 / 2), alpha and sigma by abar."""
    abar = scaled_linear_abar()[[981, 961, 941, 921]]
    a, s = abar.sqrt(), (1 - abar).sqrt()
    lam = (a / s).log()
    grid = to_sigma(abar).flip(0)
    denoise = gaussian_denoise(STD)
    x, z = latent(), latent() * a[0]
    predictions = []
    for i in range(3):
        predictions.append(denoise(z / a[i], s[i] / a[i]))
        data, h = predictions[i], lam[i + 1] - lam[i]
        if i == 1:  # both ends are of order 1
            r0 = (lam[i] - lam[i - 1]) / h
            data = data + 0.5 * (predictions[i] - predictions[i - 1]) / r0
        z = s[i + 1] / s[i] * z - a[i + 1] * torch.expm1(-h) * data
    assert maximum(walk_down(DPMSolver(2), x, grid, denoise) * a[-1], z) < 1e-12


@pytest.mark.parametrize("method", ["fixed-point", "forward-step"])
def test_order_one_is_inverted_exactly(method):
    grid, x, denoise = geometric_grid(0.05, 10.0, 20), latent(2), gaussian_denoise(STD)
    states = list(invert_dpm_solver(denoise, x, grid, order=1, method=method, iterations=400,
                                    tolerance=1e-12))
    assert max(state.residual for state in states) <= 1e-12
    back = walk_down(DPMSolver(1), states[-1].x, grid, denoise)
    assert maximum(back, to_level(x, grid[0])) < 1e-9


def test_order_two_returns_closer_than_ddim_with_more_steps():
    """The claim the method is made for: 30 steps of 2M against 50 of DDIM inversion."""
    from retrace.diffusion.inversion import invert_ddim

    table, x, denoise = to_sigma(scaled_linear_abar()), latent(), gaussian_denoise(STD)
    fine, coarse = leading_sigmas(table, 50), leading_sigmas(table, 30)
    *_, ddim = invert_ddim(denoise, x, fine)
    *_, dpm = invert_dpm_solver(denoise, x, coarse, order=2)
    ddim_error = maximum(walk_down(DPMSolver(1), ddim.x, fine, denoise), to_level(x, fine[0]))
    dpm_error = maximum(walk_down(DPMSolver(2), dpm.x, coarse, denoise), to_level(x, coarse[0]))
    assert dpm_error < 0.5 * ddim_error


def test_the_inner_solve_stops_at_its_tolerance_and_says_so():
    grid, x = geometric_grid(0.05, 10.0, 20), latent()
    states = list(invert_dpm_solver(gaussian_denoise(STD), x, grid, tolerance=1e-4, iterations=50))
    assert all(0 < state.iterations < 50 and state.residual <= 1e-4 for state in states[1:])


def test_a_solve_that_would_run_away_is_damped_and_never_worse_than_its_guess():
    one, two = torch.tensor(1.0).double(), torch.tensor(2.0).double()
    x = latent()

    def steep(y, sigma):
        return 8.0 * y  # the plain iteration multiplies its error by -8

    solved = solve_step(x, x, steep, one, two, 0.0, "fixed-point", 60, 1e-10)
    assert solved.residual <= 1e-10
    assert maximum(0.5 * solved.x + 0.5 * steep(solved.x, two), x) < 1e-9


def test_no_iterations_keep_the_guess():
    one, x, guess = torch.tensor(1.0).double(), latent(), latent(seed=1)
    solved = solve_step(x, guess, gaussian_denoise(STD), one, one * 2, 0.0, "fixed-point", 0, 0.0)
    assert solved.x is guess and solved.iterations == 0 and solved.residual == 0.0


def test_the_fine_variant_asks_more_than_the_cheap_one():
    def calls(variant):
        count = 0

        def denoise(x, sigma):
            nonlocal count
            count += 1
            return gaussian_denoise(STD)(x, sigma)

        grid = geometric_grid(0.05, 10.0, 6)
        list(invert_dpm_solver(denoise, latent(), grid, variant=variant, iterations=0))
        return count

    # two first-order ends of 1 call; four steps of 2 walks and 2 predictions
    assert calls("cheap") == 2 + 4 * (2 + 2)
    assert calls("fine") == 2 + 4 * (6 + 2)


def test_a_flow_may_end_in_pure_noise_and_at_zero():
    grid = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    *_, last = invert_dpm_solver(flow_denoise(STD), latent(), grid, flow=True)
    assert bool(torch.isfinite(last.x).all())
    back = walk_down(DPMSolver(2), last.x, grid, flow_denoise(STD), True)
    assert bool(torch.isfinite(back).all())


@pytest.mark.parametrize("options", [{"order": 3}, {"variant": "quick"}, {"method": "newton"},
                                     {"iterations": -1}, {"tolerance": -1.0}, {"substeps": 0},
                                     {"tolerance": float("nan")}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ScheduleError):
        next(invert_dpm_solver(gaussian_denoise(1.0), latent(), geometric_grid(0.1, 1, 4),
                               **options))


def make_trajectory(**fields):
    grid = leading_sigmas(to_sigma(scaled_linear_abar()), 10).float()
    clean = latent(dtype=torch.float32)
    states = [s.x for s in invert_dpm_solver(gaussian_denoise(STD), clean, grid)]
    return Trajectory(torch.stack(states), grid, clean, ModelFacts("test", "eps", "none", 4),
                      solver="dpmpp_2m", **fields)


def by_branch(x, sigma, step, wanted):
    std = {"source": STD, "target": 0.7}
    return {name: gaussian_denoise(std[name])(x[name], sigma) for name in wanted}


def test_the_walk_remembers_each_branchs_own_predictions():
    trajectory = make_trajectory()
    *_, last = edit(trajectory, by_branch)
    for branch, std in (("source", STD), ("target", 0.7)):
        alone = walk_down(DPMSolver(2), trajectory.latents[-1], trajectory.sigmas,
                          gaussian_denoise(std))
        assert maximum(getattr(last, branch), alone) < 1e-6


def test_direct_inversion_on_top_is_exact_at_the_source():
    trajectory = make_trajectory(source_rule=SourceRule(pinned=True))
    for state in edit(trajectory, by_branch):
        assert torch.equal(state.source, trajectory.latents[10 - state.step - 1])


def test_a_later_start_begins_with_a_first_order_step():
    trajectory = make_trajectory()
    first = next(edit(trajectory, by_branch, start_step=6))
    x, sigma, sigma_next = trajectory.latents[4], trajectory.sigmas[4], trajectory.sigmas[3]
    expected = step_euler(x, gaussian_denoise(0.7)(x, sigma), sigma, sigma_next)
    assert maximum(first.target, expected) < 1e-5
