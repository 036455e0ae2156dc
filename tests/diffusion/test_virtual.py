"""Virtual inversion: the source is exact without a model, an unchanged prompt changes nothing."""

import pytest
import torch
from helpers_closed_form import gaussian_denoise, latent, maximum
from retrace.diffusion.edit import edit
from retrace.diffusion.errors import ScheduleError
from retrace.diffusion.inversion import from_level
from retrace.diffusion.schedule import leading_sigmas, scaled_linear_abar, to_sigma
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory
from retrace.diffusion.virtual import invert_virtually


def make_trajectory(seed=0, flow=False, batch=1, **fields):
    grid = torch.linspace(0, 1, 7) if flow else leading_sigmas(
        to_sigma(scaled_linear_abar()), 12
    ).float()
    clean = latent(batch, dtype=torch.float32)
    states, noises = invert_virtually(clean, grid, seed, flow)
    facts = ModelFacts("test", "flow" if flow else "eps", "none", 4)
    return Trajectory(states, grid, clean, facts, solver="ddcm", noises=noises, **fields)


def by_branch(target=0.7):
    def denoise(x, sigma, step, wanted):
        std = {"source": 1.3, "target": target}
        return {name: gaussian_denoise(std[name])(x[name], sigma) for name in wanted}
    return denoise


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("rule", [SourceRule(), SourceRule(pinned=True)])
def test_the_source_stands_on_the_trajectory_bit_for_bit(flow, rule):
    trajectory = make_trajectory(flow=flow, batch=2, source_rule=rule)
    for state in edit(trajectory, by_branch()):
        wanted = trajectory.latents[trajectory.steps - state.step - 1]
        assert torch.equal(state.source, wanted) if rule.pinned else (
            maximum(state.source, wanted) < 1e-5
        )


def test_the_same_prompt_returns_the_image():
    trajectory = make_trajectory()
    for state in edit(trajectory, by_branch(target=1.3)):
        assert maximum(state.target, state.source) < 1e-6
    assert maximum(from_level(state.target, state.sigma), trajectory.clean) < 1e-6


def test_the_step_is_the_papers():
    """Textbook: z coordinates, eps_cons, x0 = (z - s (eps_x - eps_s + eps_cons)) / a, renoised."""
    trajectory = make_trajectory()
    abar = 1 / (1 + trajectory.sigmas.double() ** 2)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    top, clean = trajectory.steps, trajectory.clean.double()
    noisy = trajectory.latents.double() * a.view(-1, 1, 1, 1, 1)
    source = target = noisy[top]

    def eps(z, i, std):
        return (z / a[i] - gaussian_denoise(std)(z / a[i], s[i] / a[i])) * a[i] / s[i]

    for step in range(top):
        i = top - step
        consistent = (source - a[i] * clean) / s[i]
        change = eps(target, i, 0.7) - eps(source, i, 1.3) + consistent
        image = (target - s[i] * change) / a[i]
        noise = trajectory.noises[step].double()
        source = a[i - 1] * clean + s[i - 1] * noise
        target = a[i - 1] * image + s[i - 1] * noise
    *_, last = edit(trajectory, by_branch())
    assert maximum(from_level(last.target, last.sigma), image) < 1e-5


def test_the_source_is_asked_even_when_it_is_pinned():
    asked = []

    def watch(x, sigma, step, wanted):
        asked.append(set(wanted))
        return by_branch()(x, sigma, step, wanted)

    list(edit(make_trajectory(source_rule=SourceRule(pinned=True)), watch, source_until=0))
    assert asked == [{"source", "target"}] * 12


def test_a_later_start_keeps_the_source_exact():
    trajectory = make_trajectory()
    *_, last = edit(trajectory, by_branch(), start_step=5)
    assert maximum(from_level(last.source, last.sigma), trajectory.clean) < 1e-6


def test_a_seed_gives_the_same_bits():
    assert torch.equal(make_trajectory(3).latents, make_trajectory(3).latents)
    assert not torch.equal(make_trajectory(3).latents, make_trajectory(4).latents)


def test_the_noise_is_of_the_level_that_a_step_reaches():
    trajectory = make_trajectory()
    for step in range(trajectory.steps - 1):
        index = trajectory.steps - step - 1
        placed = trajectory.clean + trajectory.sigmas[index] * trajectory.noises[step]
        assert maximum(trajectory.latents[index], placed) < 1e-5


def test_no_steps_are_refused():
    with pytest.raises(ScheduleError, match="at least one step"):
        invert_virtually(latent(), torch.tensor([1.0]), 0)
