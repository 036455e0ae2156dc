"""The midpoint rule: second order both ways, beside a pinned source, and what is refused."""

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
from retrace.diffusion.edit import edit
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.inversion import invert_ddim, to_level
from retrace.diffusion.midpoint import step_midpoint
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

STD, STEPS = 1.3, (32, 64, 128, 256)


def problem(flow, steps):
    if flow:
        grid = torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64)
        return flow_denoise(STD), flow_path, grid
    return gaussian_denoise(STD), gaussian_path, geometric_grid(0.05, 10.0, steps)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("up", [False, True])
def test_it_is_of_second_order_both_ways(up, flow):
    """Or better: a path whose square is quadratic in sigma, as a Gaussian's, gains one order."""
    def error(steps):
        denoise, path, grid = problem(flow, steps)
        levels, x = grid if up else grid.flip(0), latent()
        expected = path(x, levels[0], levels[-1], STD)
        for sigma, sigma_next in pairwise(levels):
            x = step_midpoint(x, denoise, sigma, sigma_next)
        return maximum(x, expected)

    assert 1.85 < order_of(STEPS, [error(steps) for steps in STEPS]) < 3.15


def test_it_is_of_second_order_where_nothing_is_gained():
    """dx/dsigma = -x, whose path is exponential."""
    def error(steps):
        levels = torch.linspace(0.5, 2.0, steps + 1, dtype=torch.float64)
        start = x = latent()
        for sigma, sigma_next in pairwise(levels):
            x = step_midpoint(x, lambda y, s: y + s * y, sigma, sigma_next)
        return maximum(x, start * torch.exp(levels[0] - levels[-1]))

    assert abs(order_of(STEPS, [error(steps) for steps in STEPS]) - 2) < 0.1


def make_trajectory(steps=20, **fields):
    denoise, _, grid = problem(False, steps)
    clean = latent(dtype=torch.float32)
    states = [state.x for state in invert_ddim(denoise, clean, grid.float(),
                                               evaluate_at="midpoint")]
    return Trajectory(torch.stack(states), grid, clean, ModelFacts("test", "eps", "none", 4),
                      labels="midpoint", solver="midpoint", **fields)


def by_branch(x, sigma, step, wanted):
    std = {"source": STD, "target": 0.7}
    return {name: gaussian_denoise(std[name])(x[name], sigma) for name in wanted}


def test_the_edit_walks_down_as_the_rule_does():
    trajectory = make_trajectory()
    *_, last = edit(trajectory, by_branch)
    x = trajectory.latents[-1]
    for sigma, sigma_next in pairwise(trajectory.sigmas.flip(0)):
        x = step_midpoint(x, gaussian_denoise(0.7), sigma, sigma_next)
    assert maximum(last.target, x) < 1e-5


def test_the_round_trip_is_closer_than_ddims_with_twice_the_steps():
    """At equal cost: two evaluations a step against one."""
    trajectory = make_trajectory(20)
    *_, last = edit(trajectory, by_branch)
    denoise, _, grid = problem(False, 40)
    x = clean = to_level(latent(), grid[0])
    for sigma, sigma_next in pairwise(grid):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
    for sigma, sigma_next in pairwise(grid.flip(0)):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
    assert maximum(last.source, trajectory.latents[0]) < 0.2 * maximum(x, clean)


def test_a_pinned_source_stands_halfway_at_the_second_evaluation():
    trajectory, seen = make_trajectory(source_rule=SourceRule(pinned=True)), []

    def watch(x, sigma, step, wanted):
        seen.append(x["source"])
        return by_branch(x, sigma, step, wanted)

    for state in edit(trajectory, watch, source_until=0):
        assert torch.equal(state.source, trajectory.latents[19 - state.step])
    middle = (trajectory.latents[20] + trajectory.latents[19]) / 2
    assert torch.equal(seen[0], trajectory.latents[20]) and maximum(seen[1], middle) < 1e-6


def test_a_grid_from_zero_begins_with_a_step_of_ddim():
    grid = torch.tensor([0.0, 1.0, 2.0])
    states = list(invert_ddim(gaussian_denoise(STD), latent(dtype=torch.float32), grid,
                              evaluate_at="midpoint"))
    assert bool(states[1].x.isfinite().all())


def test_refinement_is_of_ddim_only():
    with pytest.raises(ScheduleError, match="midpoint"):
        next(invert_ddim(gaussian_denoise(STD), latent(), geometric_grid(0.1, 1.0, 3),
                         evaluate_at="midpoint", refine=2))
