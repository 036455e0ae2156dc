"""EDICT: exact inverses, the textbook loop, and coupled latents in the walk."""

import pytest
import torch
from helpers_closed_form import flow_denoise, gaussian_denoise, latent, maximum
from retrace.diffusion.edict import edict_sigmas, invert_edict, mix, unmix
from retrace.diffusion.edit import edit
from retrace.diffusion.errors import ScheduleError, TrajectoryError
from retrace.diffusion.inversion import from_level
from retrace.diffusion.schedule import scaled_linear_abar, to_sigma
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

STD, WEIGHT = 1.3, 0.93
TABLE = to_sigma(scaled_linear_abar())


def make_trajectory(*, steps=20, double=False, flow=False, batch=1, weight=WEIGHT, **fields):
    clean = latent(batch, dtype=torch.float32)
    if flow:
        grid, denoise = torch.linspace(0.0, 0.9, steps + 1), flow_denoise(STD)
    else:
        grid, denoise = edict_sigmas(TABLE, steps, 0.8).float(), gaussian_denoise(STD)
    states = list(invert_edict(denoise, clean, grid, weight=weight, double=double, flow=flow))
    extras = [("second", torch.stack([dict(s.kept)["second"] for s in states]))]
    if double:
        extras.append(("first", torch.stack([dict(s.kept)["first"] for s in states])))
    facts = ModelFacts("test", "flow" if flow else "eps", "none", 4)
    return Trajectory(
        torch.stack([s.x for s in states]), grid, clean, facts, solver="edict",
        extras=(*extras, ("mix", torch.tensor(weight, dtype=torch.float64))), **fields,
    )


def by_branch(flow=False, target=0.7):
    make = flow_denoise if flow else gaussian_denoise

    def denoise(x, sigma, step, wanted):
        std = {"source": STD, "target": target}
        return {name: make(std[name])(x[name], sigma.to(x[name])) for name in wanted}

    return denoise


def test_unmixing_undoes_mixing():
    x, y = latent(seed=1), latent(seed=2)
    back = unmix(*mix(x, y, WEIGHT), WEIGHT)
    assert maximum(back[0], x) < 1e-14 and maximum(back[1], y) < 1e-14


def test_equal_latents_stay_equal():
    x = latent()
    assert maximum(mix(x, x, WEIGHT)[0], x) < 1e-15 and maximum(mix(x, x, WEIGHT)[1], x) < 1e-15


@pytest.mark.parametrize(("double", "bound"), [(False, 1e-5), (True, 1e-10)])
@pytest.mark.parametrize("steps", [10, 50])
def test_sampling_undoes_the_inversion(double, bound, steps):
    trajectory = make_trajectory(steps=steps, double=double)
    *_, last = edit(trajectory, by_branch())
    clean = trajectory.clean.double()
    assert maximum(from_level(last.source.double(), last.sigma.double()), clean) < bound


def test_a_rectified_flow_is_undone_too():
    trajectory = make_trajectory(flow=True)
    *_, last = edit(trajectory, by_branch(flow=True))
    assert maximum(last.source, trajectory.clean) < 1e-5


def test_the_walk_is_the_papers_loop():
    """Textbook: z coordinates, coefficients A and B, latents in turns, mixing after each step."""
    trajectory = make_trajectory(steps=10, double=True)
    abar = 1 / (1 + trajectory.sigmas.double() ** 2)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    denoise, top = gaussian_denoise(0.7), trajectory.steps
    x = trajectory.extra("first")[top] * a[top]
    y = trajectory.extra("second")[top] * a[top]

    def eps(z, i):
        return (z / a[i] - denoise(z / a[i], s[i] / a[i])) * a[i] / s[i]

    for step in range(top):
        i = top - step
        big_a = a[i - 1] / a[i]
        big_b = s[i - 1] - a[i - 1] * s[i] / a[i]
        if step % 2 == 0:
            x = big_a * x + big_b * eps(y, i)
            y = big_a * y + big_b * eps(x, i)
        else:
            y = big_a * y + big_b * eps(x, i)
            x = big_a * x + big_b * eps(y, i)
        x = WEIGHT * x + (1 - WEIGHT) * y
        y = WEIGHT * y + (1 - WEIGHT) * x
    x = WEIGHT * x + (1 - WEIGHT) * y  # the step at label 0
    *_, last = edit(trajectory, by_branch())
    assert maximum(last.target.double() * a[0], x) < 1e-6


def test_weight_one_never_mixes():
    trajectory = make_trajectory(weight=1.0)
    *_, last = edit(trajectory, by_branch())
    assert maximum(from_level(last.source, last.sigma), trajectory.clean) < 1e-5


@pytest.mark.parametrize("start", [0, 3, 6])
def test_a_later_start_takes_turns_as_the_inversion_did(start):
    trajectory = make_trajectory(steps=10)
    *_, last = edit(trajectory, by_branch(), start_step=start)
    assert maximum(from_level(last.source, last.sigma), trajectory.clean) < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_direct_inversion_on_top_is_exact_and_leaves_the_target_alone(batch):
    free = make_trajectory(batch=batch)
    held = free.replace(source_rule=SourceRule(pinned=True))
    for a, b in zip(edit(free, by_branch()), edit(held, by_branch()), strict=True):
        assert torch.equal(b.source, held.latents[held.steps - b.step - 1])
        assert torch.equal(a.target, b.target)


def test_a_pinned_source_shows_its_own_half_steps_to_controllers():
    """What controllers read of a pinned source must be what a free one would have shown."""
    free = make_trajectory(double=True)

    def watch(seen):
        def denoise(x, sigma, step, wanted):
            seen.append(x["source"])
            return by_branch()(x, sigma, step, wanted)
        return denoise

    shown, pinned = [], []
    list(edit(free, watch(shown)))
    list(edit(free.replace(source_rule=SourceRule(pinned=True)), watch(pinned)))
    assert len(shown) == 2 * free.steps
    assert max(maximum(a, b) for a, b in zip(shown, pinned, strict=True)) < 1e-9


def test_a_blended_target_carries_its_second_latent_along():
    trajectory = make_trajectory()

    def after_step(step, sigma, source, target):
        return source

    *_, last = edit(trajectory, by_branch(), after_step=after_step)
    assert maximum(from_level(last.target, last.sigma), trajectory.clean) < 1e-4


def test_the_published_grid_leaves_out_the_step_that_moves_nothing():
    grid = edict_sigmas(TABLE, 10, 0.8)
    assert torch.equal(grid, torch.cat([TABLE[:1], TABLE[100:701:100]]))
    assert len(edict_sigmas(TABLE, 50, 0.8)) == 40


@pytest.mark.parametrize("weight", [0.5, 0.0, 1.1, float("nan")])
def test_a_weight_that_cannot_be_undone_is_refused(weight):
    with pytest.raises(ScheduleError, match="mixing weight"):
        next(invert_edict(gaussian_denoise(1), latent(), edict_sigmas(TABLE, 9, 1), weight=weight))


def test_a_grid_without_steps_is_refused():
    with pytest.raises(ScheduleError, match="no step"):
        edict_sigmas(TABLE, 10, 0.1)


def test_a_trajectory_without_its_second_latent_is_refused():
    trajectory = make_trajectory().replace(extras=())
    with pytest.raises(TrajectoryError, match="'second'"):
        next(edit(trajectory, by_branch()))
