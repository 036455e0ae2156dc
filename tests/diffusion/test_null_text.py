"""Null-text optimisation on toy models with closed forms, and against a textbook loop."""

import pytest
import torch
from retrace.diffusion.errors import DivergenceError, PlanError
from retrace.diffusion.null_text import Adam, loss_gradient, optimise_null, rate_at

SIGMAS = torch.tensor([0.03, 0.5, 1.0, 2.0, 4.0])


def toy(batch: int = 1, seed: int = 0):
    """A trajectory and predictions linear in the embedding: denoised = x a + embedding mean b."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(SIGMAS), batch, 4, 4, 4, generator=generator)
    weight = torch.randn(4, 8, generator=generator)
    embedding = torch.randn(batch, 3, 8, generator=generator)

    def denoise_cond(x, sigma, step):
        return 0.5 * x

    def denoise_null(x, sigma, step, embedding):
        return 0.4 * x + (embedding.mean(1) @ weight.T)[:, :, None, None]

    return latents, embedding, denoise_cond, denoise_null


def run(batch=1, **settings):
    latents, embedding, cond, null = toy(batch)
    settings = {"guidance_scale": 3.0, "inner_steps": 5, **settings}
    return list(optimise_null(latents, SIGMAS, embedding, cond, null, **settings))


def test_adam_equals_torchs():
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 3, 8, generator=generator)
    parameter = value.clone().requires_grad_(True)
    theirs, ours = torch.optim.Adam([parameter], lr=0.01), Adam()
    for _ in range(12):
        gradient = torch.randn(value.shape, generator=generator) * 1e-4
        parameter.grad = gradient
        theirs.step()
        value = ours.update(value, gradient, 0.01)
    assert torch.allclose(value, parameter.detach(), atol=1e-7, rtol=0)


def textbook(latents, embedding, cond, null, scale, inner, early_stop):
    """The paper's loop in variance-preserving coordinates with torch's own optimiser."""
    z = latents / (1 + SIGMAS**2).sqrt()[:, None, None, None, None]
    abar = 1 / (1 + SIGMAS**2)
    current, found, losses = z[-1], [], []
    for i in range(len(SIGMAS) - 1):
        t, s = len(SIGMAS) - 1 - i, len(SIGMAS) - 2 - i

        def step(uncond, current=current, t=t, s=s):
            x = current / abar[t].sqrt()
            eps_c = (x - cond(x, SIGMAS[t], 0)) / SIGMAS[t]
            eps_u = (x - null(x, SIGMAS[t], 0, uncond)) / SIGMAS[t]
            eps = eps_u + scale * (eps_c - eps_u)
            clean = (current - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            return abar[s].sqrt() * clean + (1 - abar[s]).sqrt() * eps

        embedding = embedding.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([embedding], lr=1e-2 * (1 - i / 100))
        for _ in range(inner):
            loss = (step(embedding) - z[s]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if loss.item() < early_stop + i * 2e-5:
                break
        found.append(embedding.detach().clone())
        current = step(embedding).detach()
    return torch.stack(found), losses, current


@pytest.mark.parametrize("early_stop", [1e-5, 0.5])
def test_states_equal_a_textbook_loop(early_stop):
    latents, embedding, cond, null = toy()
    expected, losses, final = textbook(latents, embedding, cond, null, 3.0, 5, early_stop)
    states = run(early_stop=early_stop)
    assert torch.allclose(torch.stack([s.embedding for s in states]), expected, atol=1e-5)
    found = torch.cat([s.losses for s in states])[:, 0]
    assert torch.allclose(found, torch.tensor(losses), rtol=1e-4, atol=1e-6)
    z = states[-1].x / (1 + SIGMAS[0] ** 2).sqrt()
    assert torch.allclose(z, final, atol=1e-4)


def test_images_of_a_batch_are_optimised_as_if_alone():
    latents, embedding, cond, null = toy(batch=3)
    latents[:, 1] = 0.5 * latents[:, 1]  # another loss level: it stops at another inner step
    settings = {"guidance_scale": 3.0, "inner_steps": 6, "early_stop": 0.4}
    together = list(optimise_null(latents, SIGMAS, embedding, cond, null, **settings))
    for image in range(3):
        one = slice(image, image + 1)
        alone = list(
            optimise_null(latents[:, one], SIGMAS, embedding[one], cond, null, **settings)
        )
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a.embedding[one], b.embedding, atol=1e-6)
            run_losses = a.losses[:, image][~a.losses[:, image].isnan()]
            assert len(run_losses) == len(b.losses)


def test_optimisation_lowers_the_loss():
    for state in run(inner_steps=20, early_stop=0.0):
        assert state.losses[-1] < state.losses[0]


def test_each_step_starts_where_the_last_one_ended():
    seen = []
    latents, embedding, cond, null = toy()

    def spying(x, sigma, step, embedding):
        seen.append((step, embedding.detach().clone()))
        return null(x, sigma, step, embedding)

    states = list(optimise_null(latents, SIGMAS, embedding, cond, spying, inner_steps=2))
    for state in states[:-1]:
        first = next(value for step, value in seen if step == state.step + 1)
        assert torch.equal(first, state.embedding)


def test_learning_rate_falls_as_published_and_never_turns_negative():
    assert [rate_at(1e-2, i, 50) for i in (0, 25, 49)] == pytest.approx([0.01, 0.0075, 0.0051])
    assert rate_at(1e-2, 5, 10) == pytest.approx(0.0095)
    assert min(rate_at(1e-2, i, 400) for i in range(400)) > 0


def test_loss_scale_changes_no_gradient_and_takes_back_an_overflow():
    weight = torch.randn(8, generator=torch.Generator().manual_seed(2))

    def measure(leaf):
        return (leaf * weight).square().flatten(1).mean(1)

    embedding = torch.ones(1, 3, 8)
    plain = loss_gradient(measure, embedding, 1.0)[1]
    assert torch.equal(loss_gradient(measure, embedding, 2.0**12)[1], plain)
    assert torch.equal(loss_gradient(measure, embedding, 2.0**127)[1], plain)


@pytest.mark.parametrize("settings", [{"inner_steps": 0}, {"learning_rate": 0.0}])
def test_settings_that_do_nothing_are_refused(settings):
    with pytest.raises(PlanError):
        run(**settings)


def test_a_loss_that_is_not_a_number_stops_with_the_step():
    latents, embedding, cond, _ = toy()
    with pytest.raises(DivergenceError, match="step 1"):
        list(optimise_null(latents, SIGMAS, embedding, cond,
                           lambda x, sigma, step, e: x * e.sum() * float("nan")))
