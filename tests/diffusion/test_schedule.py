"""Noise levels: the published numbers, conversions, and what is refused."""

import math

import pytest
import torch
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.schedule import (
    check_grid,
    leading_sigmas,
    leading_timesteps,
    scaled_linear_abar,
    to_abar,
    to_sigma,
)

PUBLISHED_ABAR = {
    0: 0.99915000, 1: 0.99829603, 20: 0.98131436, 21: 0.98038075, 101: 0.89298054,
    201: 0.75214340, 401: 0.42288152, 501: 0.27499907, 801: 0.03654652, 961: 0.00728173,
    981: 0.00577550, 999: 0.00466010,
}
PUBLISHED_SIGMA = {0: 0.02917, 1: 0.04131, 981: 13.12041, 999: 14.61464}
PUBLISHED_LAMBDA = {1: 3.18654, 981: -2.57417}


@pytest.mark.parametrize(("label", "abar"), PUBLISHED_ABAR.items())
def test_abar_has_the_published_value(label, abar):
    assert abs(float(scaled_linear_abar()[label]) - abar) < 6e-9


@pytest.mark.parametrize(("label", "sigma"), PUBLISHED_SIGMA.items())
def test_sigma_has_the_published_value(label, sigma):
    assert abs(float(to_sigma(scaled_linear_abar())[label]) - sigma) < 6e-6


@pytest.mark.parametrize(("label", "half_log_snr"), PUBLISHED_LAMBDA.items())
def test_half_log_snr_is_minus_log_sigma(label, half_log_snr):
    assert abs(-math.log(float(to_sigma(scaled_linear_abar())[label])) - half_log_snr) < 6e-6


def test_abar_and_sigma_are_inverses():
    abar = scaled_linear_abar()
    assert float((to_abar(to_sigma(abar)) - abar).abs().max()) < 1e-15


def test_fifty_steps_have_the_published_labels():
    assert leading_timesteps(50) == list(range(1, 982, 20))


def test_ten_steps_have_the_published_labels():
    assert leading_timesteps(10) == list(range(1, 902, 100))


def test_offset_zero_gives_the_labels_of_edict():
    assert leading_timesteps(50, offset=0) == list(range(0, 981, 20))


def test_grid_starts_at_the_tables_first_level_and_not_at_zero():
    table = to_sigma(scaled_linear_abar())
    grid = leading_sigmas(table, 50)
    assert len(grid) == 51
    assert grid[0] == table[0] and grid[1] == table[1] and grid[-1] == table[981]


def test_as_many_steps_as_training_steps_stay_inside_the_table():
    assert leading_timesteps(1000)[-1] == 999


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_step_count_outside_training_is_refused(steps):
    with pytest.raises(ScheduleError, match="between 1 and 1000"):
        leading_timesteps(steps)


def test_offset_zero_is_refused_as_a_plain_grid():
    with pytest.raises(ScheduleError, match="offset 1"):
        leading_sigmas(to_sigma(scaled_linear_abar()), 10, offset=0)


def test_a_decreasing_host_schedule_is_turned_round():
    assert torch.equal(check_grid(torch.tensor([3.0, 1.0, 0.0])), torch.tensor([0.0, 1.0, 3.0]))


@pytest.mark.parametrize(
    "levels",
    [[1.0], [[0.0, 1.0]], [0.0, float("nan"), 2.0], [0.0, 1.0, 1.0], [-1.0, 1.0], [0.0, 2.0, 1.0],
     [0.0, 1.0, float("inf")]],
)
def test_levels_that_are_no_schedule_are_refused(levels):
    with pytest.raises(ScheduleError):
        check_grid(torch.tensor(levels))


def test_checking_a_grid_does_not_alias_it():
    given = torch.tensor([0.0, 1.0])
    assert check_grid(given).data_ptr() != given.data_ptr()
