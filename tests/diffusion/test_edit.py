"""The walk down with two branches: pinning, offsets, start, and what is refused."""

import pytest
import torch
from helpers_closed_form import gaussian_denoise, latent, maximum
from retrace.diffusion.edit import edit
from retrace.diffusion.errors import DivergenceError, PlanError, ScheduleError, TrajectoryError
from retrace.diffusion.inversion import invert_ddim
from retrace.diffusion.schedule import leading_sigmas, scaled_linear_abar, to_sigma
from retrace.diffusion.steps import step_euler
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

FACTS = ModelFacts("test", "eps", "none", 4)
STEPS = 10
SOURCE, TARGET = gaussian_denoise(1.3), gaussian_denoise(0.7)


def make_trajectory(batch=1, **fields) -> Trajectory:
    grid = leading_sigmas(to_sigma(scaled_linear_abar()), STEPS).float()
    clean = latent(batch, dtype=torch.float32)
    states = [state.x for state in invert_ddim(SOURCE, clean, grid)]
    return Trajectory(torch.stack(states), grid, clean, FACTS, **fields)


def denoise(x, sigma, step, wanted):
    by_branch = {"source": SOURCE, "target": TARGET}
    return {name: by_branch[name](x[name], sigma) for name in wanted}


def pinned(**rule) -> Trajectory:
    return make_trajectory(source_rule=SourceRule(pinned=True, **rule))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pinned_source_stands_on_the_trajectory_bit_for_bit(batch):
    trajectory = make_trajectory(batch, source_rule=SourceRule(pinned=True))
    for state in edit(trajectory, denoise):
        assert torch.equal(state.source, trajectory.latents[STEPS - state.step - 1])


def test_a_pinned_source_is_never_evaluated():
    asked = []

    def watch(x, sigma, step, wanted):
        asked.append(tuple(wanted))
        return denoise(x, sigma, step, wanted)

    list(edit(pinned(), watch))
    assert asked == [("target",)] * STEPS


def test_pinning_leaves_the_target_free():
    free, held = list(edit(make_trajectory(), denoise)), list(edit(pinned(), denoise))
    assert all(torch.equal(a.target, b.target) for a, b in zip(free, held, strict=True))


def test_overwriting_is_the_published_offset_formulation():
    """Textbook: offsets in a pass of their own, then added to the source row of the edit."""
    trajectory = pinned()
    sigmas, states = trajectory.sigmas, trajectory.latents
    offsets, x = [], states[STEPS]
    for index in range(STEPS, 0, -1):
        stepped = step_euler(x, SOURCE(x, sigmas[index]), sigmas[index], sigmas[index - 1])
        offsets.append(states[index - 1] - stepped)
        x = stepped + offsets[-1]
    x = states[STEPS]
    for state, offset in zip(edit(trajectory, denoise), offsets, strict=True):
        index = STEPS - state.step
        x = step_euler(x, SOURCE(x, sigmas[index]), sigmas[index], sigmas[index - 1]) + offset
        assert maximum(state.source, x) <= 1e-6


@pytest.mark.parametrize("rule", [{"scale": 0.4}, {"scale": 0.8}, {"interval": 2},
                                  {"interval": 5}, {"scale": 0.5, "interval": 3}])
def test_scale_and_interval_are_the_textbook_loop(rule):
    trajectory = pinned(**rule)
    sigmas, states = trajectory.sigmas, trajectory.latents
    x = states[STEPS]
    for state in edit(trajectory, denoise):
        index = STEPS - state.step
        x = step_euler(x, SOURCE(x, sigmas[index]), sigmas[index], sigmas[index - 1])
        if state.step % rule.get("interval", 1) == 0:
            x = x + rule.get("scale", 1.0) * (states[index - 1] - x)
        assert maximum(state.source, x) <= 1e-6


def test_scale_zero_is_a_free_source():
    held, free = list(edit(pinned(scale=0.0), denoise)), list(edit(make_trajectory(), denoise))
    assert all(torch.equal(a.source, b.source) for a, b in zip(held, free, strict=True))


def test_a_free_source_is_plain_sampling():
    trajectory = make_trajectory()
    x = trajectory.latents[STEPS]
    for state in edit(trajectory, denoise):
        index = STEPS - state.step
        sigma, sigma_next = trajectory.sigmas[index], trajectory.sigmas[index - 1]
        x = step_euler(x, SOURCE(x, sigma), sigma, sigma_next)
        assert torch.equal(state.source, x)


def test_blends_see_the_source_after_it_was_pinned():
    trajectory, seen = pinned(), []

    def after_step(step, sigma, source, target):
        seen.append(torch.equal(source, trajectory.latents[STEPS - step - 1]))
        return source

    *_, last = edit(trajectory, denoise, after_step=after_step)
    assert all(seen) and torch.equal(last.target, trajectory.latents[0])


def test_a_later_start_begins_on_the_trajectory():
    states = list(edit(pinned(), denoise, start_step=7))
    trajectory = pinned()
    sigma, sigma_next = trajectory.sigmas[3], trajectory.sigmas[2]
    x = trajectory.latents[3]
    assert [state.step for state in states] == [7, 8, 9]
    assert maximum(states[0].target, step_euler(x, TARGET(x, sigma), sigma, sigma_next)) < 1e-6


def test_a_source_nobody_reads_any_more_is_dropped():
    states = list(edit(make_trajectory(), denoise, source_until=4))
    assert [state.source is None for state in states] == [False] * 4 + [True] * 6


@pytest.mark.parametrize("start", [-1, STEPS, 99])
def test_a_start_outside_the_trajectory_is_refused(start):
    with pytest.raises(PlanError, match="start_step"):
        next(edit(pinned(), denoise, start_step=start))


def test_a_latent_that_leaves_the_finite_world_stops_the_run_with_the_step():
    def broken(x, sigma, step, wanted):
        return {name: x[name] * (float("nan") if step == 2 else 1.0) for name in wanted}

    with pytest.raises(DivergenceError, match="step 3 of 10"):
        list(edit(pinned(), broken))


def test_an_unknown_solver_is_refused_by_name():
    with pytest.raises(TrajectoryError, match="'from-the-future'"):
        next(edit(make_trajectory(solver="from-the-future"), denoise))


def test_two_walks_give_the_same_bits():
    trajectory = pinned()
    first, second = list(edit(trajectory, denoise)), list(edit(trajectory, denoise))
    assert all(torch.equal(a.target, b.target) for a, b in zip(first, second, strict=True))


def change(**fields):
    return lambda: make_trajectory().replace(**fields)


@pytest.mark.parametrize(
    "malformed",
    [
        change(latents=torch.zeros(3, 1, 4, 4, 4)),
        change(latents=torch.zeros(STEPS + 1, 4, 4, 4)),
        change(clean=torch.zeros(1, 4, 8, 8)),
        change(latents=torch.full((STEPS + 1, 1, 4, 4, 4), float("nan"))),
        change(noises=torch.zeros(STEPS + 1, 1, 4, 4, 4)),
        change(null_embeddings=torch.zeros(3, 1, 77, 8)),
    ],
)
def test_a_malformed_trajectory_is_refused(malformed):
    with pytest.raises(TrajectoryError):
        malformed()


def test_a_trajectory_with_repeated_levels_is_refused():
    with pytest.raises(ScheduleError):
        make_trajectory().replace(sigmas=torch.ones(STEPS + 1))


def test_a_trajectory_is_fp32_on_the_cpu_and_cannot_be_assigned():
    trajectory = make_trajectory()
    assert trajectory.latents.dtype == torch.float32 and trajectory.latents.device.type == "cpu"
    with pytest.raises(AttributeError):
        trajectory.solver = "euler"


def test_notes_are_added_to_a_copy():
    trajectory = make_trajectory()
    noted = trajectory.noted(seconds=1.0)
    assert dict(noted.report) == {"seconds": 1.0} and trajectory.report == ()
