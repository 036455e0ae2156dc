"""XAttn-Guidance beside other controllers: one step against the papers' formulas on maps."""

import pytest
import torch
from helpers_host import SMALL_UNET, conditioning, make_unet_model, words_prompt
from helpers_textbook import STEPS, TC, TU, prepare, relative, softmax_maps, textbook, times_values

pytestmark = pytest.mark.host

SIGMA, FIRST, CFG, AMOUNT, SCALE = 4.0, 0.5, 3.0, 1.0, 0.18215
EVERYWHERE = (0.0, 1.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCE, TARGET, NEGATIVE = (4 * random(1, 77, 64, seed=seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SMALL_UNET)


def controllers(name):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    pair = PromptPair(words_prompt("a cat on a mat"), words_prompt("a dog on a mat"))
    return {
        "Prompt-to-Prompt": [PromptToPrompt(pair, "replace", EVERYWHERE, EVERYWHERE)],
        "MasaCtrl": [MasaCtrl(0.2, 2)],
        "both": [PromptToPrompt(pair, "replace", EVERYWHERE, (0.0, 0.0)), MasaCtrl(0.2, 2)],
    }[name]


def make_trajectory(images):
    """Return states of a pinned source; the last step starts at SIGMA and ends at FIRST."""
    from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory

    latents = 3 * random(STEPS + 1, images, 4, 16, 16, seed=5)
    sigmas = torch.tensor([FIRST, *(SIGMA + 0.5 * i for i in range(STEPS))])
    return Trajectory(
        latents, sigmas, latents[0] / (1 + FIRST**2) ** 0.5 / SCALE,
        ModelFacts("SD15", "eps", "SD15", 4), source=conditioning(SOURCE),
        source_rule=SourceRule(pinned=True),
    )  # fmt: skip


def last_step(model, trajectory, others, amount=AMOUNT, mask=None, first=True):
    """Edit the last step only; first: XAttn-Guidance is the first controller on the model."""
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.model import model_facts

    guidance = [AttentionGuidance(amount, normalise=False)] if amount else []
    for controller in [*guidance, *others] if first else [*others, *guidance]:
        model = with_controller(model, controller)
    trajectory = trajectory.replace(model=model_facts(model))
    return run_edit(
        model, trajectory, conditioning(TARGET), conditioning(NEGATIVE), cfg=CFG,
        start_step=STEPS - 1, mask=mask,
    ).edited  # fmt: skip


def pulled(model, facts, x):
    """Return the textbook's guidance step: the gradient of the prompts' own maps."""
    sites = [site for site in facts.sites if site.kind == "cross"]

    def maps(latent, context):
        found = []

        def keep(q, k, v, extra):
            found.append(softmax_maps(q, k, extra["n_heads"]))
            return times_values(found[-1], v)

        options = {"patches_replace": {"attn2": {site.address: keep for site in sites}}}
        model.model.apply_model(
            latent, torch.full((len(latent),), SIGMA), transformer_options=options,
            c_crossattn=context.expand(len(latent), -1, -1),
        )
        return found

    with torch.no_grad():
        wanted = maps(x, SOURCE)
    leaf = x.clone().requires_grad_(True)
    pairs = zip(maps(leaf, TARGET), wanted, strict=True)
    loss = sum((a - b).square().sum((2, 3)).mean(1).sum() for a, b in pairs)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return x - AMOUNT * (1 + SIGMA**2) * gradient


def expected_step(model, trajectory, others, mask=None):
    """Return the textbook's edit: pull, then the controllers' network call, guidance, DDIM."""
    images = trajectory.batch
    facts, _ = prepare(model, others, images)
    x = trajectory.latents[1]
    moved = pulled(model, facts, x)
    context = torch.stack([NEGATIVE, NEGATIVE, SOURCE, TARGET]).expand(-1, images, -1, -1)
    rows = torch.cat([moved, x, x, moved])  # target and source without, source and target with
    out = textbook(model, others, facts, STEPS - 1, rows, context.flatten(0, 1), {})
    out = out.unflatten(0, (4, images))
    denoised = out[TU] + CFG * (out[TC] - out[TU])
    after = moved + (FIRST - SIGMA) * (moved - denoised) / SIGMA
    if mask is not None:
        source = trajectory.latents[0]
        after = source + mask * (after - source)
    return after / (1 + FIRST**2) ** 0.5 / SCALE


@pytest.mark.parametrize("name", ["Prompt-to-Prompt", "MasaCtrl", "both"])
def test_a_guided_step_with_other_controllers_is_the_textbooks(name, model):
    trajectory, others = make_trajectory(images=2), controllers(name)
    found = last_step(model, trajectory, others)
    assert relative(found, expected_step(model, trajectory, others)) <= 1e-4
    assert relative(last_step(model, trajectory, others, amount=0), found) > 1e-2
    assert relative(last_step(model, trajectory, []), found) > 1e-2
    assert torch.equal(last_step(model, trajectory, others), found)
    assert torch.equal(last_step(model, trajectory, others, first=False), found)


def test_a_mask_keeps_the_source_outside_a_guided_edit(model):
    trajectory, others = make_trajectory(images=2), controllers("Prompt-to-Prompt")
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    at_latent = torch.nn.functional.interpolate(mask[:, None], (16, 16), mode="area")
    found = last_step(model, trajectory, others, mask=mask)
    inside = at_latent.expand_as(found) == 1
    assert torch.allclose(found[..., 10:, :], trajectory.clean[..., 10:, :], atol=1e-5)
    expected = expected_step(model, trajectory, others, at_latent)
    rows = slice(0, 6)  # away from the border, which the mask's resizing blurs
    assert relative(found[..., rows, :], expected[..., rows, :]) <= 1e-4
    assert bool(inside[..., rows, :].all())
