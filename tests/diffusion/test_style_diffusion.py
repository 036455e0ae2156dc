"""StyleDiffusion's network and loop: torch's own layers, a textbook loop, closed forms."""

import pytest
import torch
from retrace.diffusion.errors import DivergenceError, PlanError
from retrace.diffusion.style_diffusion import (
    inner_steps_at,
    inner_steps_in_all,
    optimise_values,
)
from retrace.diffusion.value_network import (
    NetworkSize,
    fit_channels,
    initial_parameters,
    map_features,
)
from torch import nn

SIGMAS = torch.tensor([0.03, 0.5, 1.0, 2.0, 4.0])
SIZE = NetworkSize(image_tokens=5, text_tokens=3)
CHANNELS = 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_layers(parameters):
    """The paper's layers of torch's own classes, with the weights of one of our networks."""
    width = SIZE.width
    layers = nn.Sequential(
        nn.Conv1d(SIZE.image_tokens, width, 1),
        nn.Conv1d(width, width, 1), nn.BatchNorm1d(width), nn.LeakyReLU(),
        nn.Conv1d(width, width, 1),
    ).train()  # fmt: skip
    start = 0
    for weight in layers.parameters():
        weight.data = parameters[start : start + weight.numel()].view_as(weight).clone()
        start += weight.numel()
    assert start == len(parameters) == SIZE.parameters
    return layers


def toy(batch=1, seed=0):
    """A trajectory and predictions that depend on the change of values, with a loss of its own."""
    latents = random(len(SIGMAS), batch, 4, 4, 4, seed=seed)
    weight, features = random(4, CHANNELS, seed=1), random(batch, 5, CHANNELS, seed=2)

    def denoise_uncond(x, sigma, step):
        return 0.4 * x

    def denoise_cond(x, sigma, step, modulation):
        scale, shift = modulation.unbind(1)
        moved = (scale.mean(1) * 0.3 + shift.mean(1)) @ weight.T
        own = 0.01 * (scale - 1).square().mean((1, 2))
        return 0.5 * x + moved[:, :, None, None], own

    return latents, features, denoise_uncond, denoise_cond


def run(batch=1, **settings):
    latents, features, uncond, cond = toy(batch)
    settings = {"guidance_scale": 3.0, "inner_steps": 5, **settings}
    return list(optimise_values(
        latents, SIGMAS, initial_parameters(SIZE, batch, seed=3),
        lambda p: map_features(p, features, SIZE), uncond, cond, **settings,
    ))


def test_network_is_the_papers_layers():
    parameters, features = random(2, SIZE.parameters), random(2, 5, CHANNELS, seed=1)
    found = map_features(parameters, features, SIZE)
    for image in range(2):
        out = published_layers(parameters[image])(features[image : image + 1])
        expected = torch.stack(out.split(SIZE.text_tokens, dim=1), 1)
        assert torch.allclose(found[image : image + 1], expected, atol=1e-4, rtol=1e-5)


def test_first_weights_are_drawn_as_torch_draws_them():
    layers = published_layers(initial_parameters(NetworkSize(5, 3), 1, seed=0)[0])
    large = initial_parameters(NetworkSize(197, 77), 1, seed=0)[0]
    enter = large[: 154 * 197]
    assert float(enter.abs().max()) <= 197**-0.5
    assert float(enter.std()) == pytest.approx(nn.Conv1d(197, 154, 1).weight.std().item(), rel=0.03)
    norm = layers[2]
    assert bool((norm.weight == 1).all() and (norm.bias == 0).all())


def test_identity_start_changes_no_value():
    parameters = initial_parameters(SIZE, 2, seed=0, start="identity")
    scale, shift = map_features(parameters, random(2, 5, CHANNELS), SIZE).unbind(1)
    assert bool((scale == 1).all() and (shift == 0).all())


def test_identity_start_still_learns():
    latents, features, uncond, cond = toy()
    states = list(optimise_values(
        latents, SIGMAS, initial_parameters(SIZE, 1, 0, "identity"),
        lambda p: map_features(p, features, SIZE), uncond, cond,
        guidance_scale=3.0, inner_steps=10, early_stop=0.0,
    ))
    assert float(states[0].losses[-1]) < 0.9 * float(states[0].losses[0])


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator():
    before = torch.random.get_rng_state()
    first, again = (initial_parameters(SIZE, 1, seed=7) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, initial_parameters(SIZE, 1, seed=8))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("width", [6, 8, 20])
def test_fitting_channels_keeps_sizes(width):
    features = random(2, 50, width)
    fitted = fit_channels(features, CHANNELS)
    assert fitted.shape == (2, 50, CHANNELS)
    assert float(fitted.square().mean()) == pytest.approx(
        float(features.square().mean()), rel=0.2)
    if width == CHANNELS:
        assert fitted is features
    if width < CHANNELS:  # an isometry but for the one factor
        angles = [t @ t.transpose(1, 2) / t.shape[-1] for t in (features, fitted)]
        assert torch.allclose(*angles, atol=1e-5)


def textbook(inner, early_stop, scale=3.0):
    """The published loop in variance-preserving coordinates: torch's layers and optimiser."""
    latents, features, uncond, cond = toy()
    z = latents / (1 + SIGMAS**2).sqrt()[:, None, None, None, None]
    abar = 1 / (1 + SIGMAS**2)
    current, found, losses = z[-1], [], []
    layers = published_layers(initial_parameters(SIZE, 1, seed=3)[0])
    for i in range(len(SIGMAS) - 1):
        t, s = len(SIGMAS) - 1 - i, len(SIGMAS) - 2 - i

        def step(current=current, t=t, s=s):
            x = current / abar[t].sqrt()
            modulation = torch.stack(layers(features).split(3, dim=1), 1)
            denoised, own = cond(x, SIGMAS[t], 0, modulation)
            eps_c = (x - denoised) / SIGMAS[t]
            eps_u = (x - uncond(x, SIGMAS[t], 0)) / SIGMAS[t]
            eps = eps_u + scale * (eps_c - eps_u)
            clean = (current - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            return abar[s].sqrt() * clean + (1 - abar[s]).sqrt() * eps, own, modulation

        optimiser = torch.optim.Adam(layers.parameters(), lr=1e-2 * (1 - i / 100))
        for _ in range(int(torch.ceil(inner * torch.exp(torch.tensor(-0.1 * i))))):
            moved, own, _ = step()
            loss = (moved - z[s]).square().mean() + own.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if loss.item() < early_stop + i * 2e-5:
                break
        with torch.no_grad():
            current, _, modulation = step()
        found.append(modulation)
    return torch.stack(found), losses, current


@pytest.mark.parametrize("early_stop", [1e-5, 1.0])
def test_states_equal_a_textbook_loop(early_stop):
    expected, losses, final = textbook(6, early_stop)
    states = run(inner_steps=6, early_stop=early_stop)
    found = torch.cat([s.losses for s in states])[:, 0]
    assert torch.allclose(found, torch.tensor(losses), rtol=1e-3, atol=1e-5)
    assert torch.allclose(torch.stack([s.modulation for s in states]), expected, atol=2e-4)
    z = states[-1].x / (1 + SIGMAS[0] ** 2).sqrt()
    assert torch.allclose(z, final, atol=1e-3)


def test_images_of_a_batch_are_trained_as_if_alone():
    latents, features, uncond, cond = toy(batch=2)
    latents[:, 1] = 0.3 * latents[:, 1]  # another loss level: it stops at another inner step
    settings = {"guidance_scale": 3.0, "inner_steps": 6, "early_stop": 0.6}

    def train(rows):
        return list(optimise_values(
            latents[:, rows], SIGMAS, initial_parameters(SIZE, len(features[rows]), 3),
            lambda p: map_features(p, features[rows], SIZE), uncond, cond, **settings,
        ))

    together = train(slice(None))
    for image in range(2):
        for a, b in zip(together, train(slice(image, image + 1)), strict=True):
            assert torch.allclose(a.modulation[image], b.modulation[0], atol=1e-4)
            ran = a.losses[:, image][~a.losses[:, image].isnan()]
            assert len(ran) == len(b.losses)


def test_training_lowers_the_loss_of_every_step():
    for state in run(inner_steps=30, early_stop=0.0):
        assert float(state.losses[-1]) < float(state.losses[0])


def test_inner_steps_fall_as_published():
    assert [inner_steps_at(100, i) for i in (0, 10, 20, 30, 40, 49)] == [100, 37, 14, 5, 2, 1]
    assert inner_steps_in_all(100, 50) == sum(inner_steps_at(100, i) for i in range(50))
    assert [len(state.losses) for state in run(inner_steps=20, early_stop=0.0)] == [20, 19, 17, 15]


@pytest.mark.parametrize("settings", [{"inner_steps": 0}, {"learning_rate": 0.0}])
def test_settings_that_do_nothing_are_refused(settings):
    with pytest.raises(PlanError, match="StyleDiffusion"):
        run(**settings)


def test_a_loss_that_is_not_a_number_stops_with_the_step():
    latents, features, uncond, _ = toy()
    with pytest.raises(DivergenceError, match="StyleDiffusion loss became NaN or Inf at step 1"):
        list(optimise_values(
            latents, SIGMAS, initial_parameters(SIZE, 1, 3),
            lambda p: map_features(p, features, SIZE), uncond,
            lambda x, sigma, step, m: (x * m.sum() * float("nan"), torch.zeros(1)),
        ))


def test_an_unknown_start_is_refused():
    with pytest.raises(PlanError, match="identity"):
        initial_parameters(SIZE, 1, 0, "warm")
