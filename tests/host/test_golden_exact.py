"""Numbers of the papers' own code: EDICT, edit-friendly DDPM, pix2pix-zero's regularised noise."""

import json

import pytest
import torch
from helpers_host import TokenizerOnly, conditioning, rms

pytestmark = pytest.mark.host

SCALE = 0.18215


@pytest.fixture(scope="module")
def embeddings(golden_dir, golden):
    texts = json.loads((golden_dir / "prompt_embeddings.json").read_text())
    tensors, _ = golden("prompt_embeddings")
    return {text: conditioning(tensors["embeddings"][i : i + 1]) for i, text in enumerate(texts)}


@pytest.fixture(scope="module")
def latent(golden):
    return {"samples": golden("inputs")[0]["z0_tiny3"] / SCALE}


def to_z(x, sigma):
    return x.double() / (1 + sigma.double() ** 2).sqrt()


@pytest.fixture(scope="module")
def edict(tiny3, latent, embeddings, golden):
    from retrace.host.inversion_exact import invert_with_edict

    tensors, facts = golden("edict/tiny3_10/edict+direct_forward")
    trajectory, _, _ = invert_with_edict(
        tiny3, embeddings[facts["prompt_src"]], latent, steps=facts["steps"],
        strength=facts["init_image_strength"], weight=facts["mix_weight"],
        cfg=facts["guidance_scale"], negative=embeddings[""],
    )
    return trajectory, tensors, facts


def test_edict_inverts_to_the_published_pair(edict):
    trajectory, tensors, _ = edict
    top = trajectory.sigmas[-1]
    pair = [to_z(trajectory.extra(name)[-1], top) for name in ("first", "second")]
    assert rms(torch.stack(pair), tensors["inverted_pair"]) <= 1e-4


def test_edict_edits_to_the_published_image(edict, tiny3, embeddings):
    from retrace.host.editing import run_edit

    trajectory, tensors, facts = edict
    result = run_edit(tiny3, trajectory, embeddings[facts["prompt_tar"]], embeddings[""],
                      cfg=facts["guidance_scale"])
    assert rms(result.edited * SCALE, tensors["edit_pair_final"][0]) <= 5e-4
    # exact but for the network's own rounding, which the two directions do not share
    assert rms(result.source * SCALE, trajectory.clean * SCALE) <= 5e-5


@pytest.fixture(scope="module")
def edit_friendly(tiny3, latent, embeddings, golden):
    from retrace.host.inversion_exact import invert_with_noises
    from retrace.host.model import make_grid

    tensors, facts = golden("edit_friendly/tiny3_10/edit-friendly-inversion+p2p__swap")
    sigmas = make_grid(tiny3, "diffusers", facts["steps"])[1:, None, None, None]
    states = tensors["xts_sampled"][1:] * (1 + sigmas**2).sqrt()
    trajectory, _, _ = invert_with_noises(
        tiny3, embeddings[facts["prompt_src"]], latent, steps=facts["steps"],
        states=states[:, None], keep_last_noise=False,
    )
    return trajectory, tensors, facts


def test_edit_friendly_states_and_noises_are_the_published_ones(edit_friendly):
    trajectory, tensors, _ = edit_friendly
    z = to_z(trajectory.latents[:, 0], trajectory.sigmas[:, None, None, None])
    assert rms(z, tensors["xts"]) <= 1e-4
    assert rms(trajectory.noises[:, 0].flip(0), tensors["zs"]) <= 5e-4


def test_edit_friendly_edit_is_the_published_one(edit_friendly, tiny3, embeddings):
    """The published windows count from the skipped start: 0.4 and 0.6 end 2 of 10 steps later."""
    from retrace.attention.prompt_to_prompt import PromptToPrompt
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.tokens import pair_prompts

    trajectory, tensors, facts = edit_friendly
    pair = pair_prompts(TokenizerOnly(), facts["prompt_src"], facts["prompt_tar"], published=True)
    controller = PromptToPrompt(
        pair, mode="replace", cross_replace=(0.0, 0.6), self_replace=(0.0, 0.8), self_tokens=16**2
    )
    result = run_edit(
        with_controller(tiny3, controller), trajectory, embeddings[facts["prompt_tar"]],
        embeddings[""], cfg=facts["target_guidance_scale"], start_step=facts["skip"],
    )
    assert rms(result.source * SCALE, tensors["edit_final"][:1]) <= 5e-4
    assert rms(result.edited * SCALE, tensors["edit_final"][1:]) <= 5e-4


def test_regularised_noise_is_the_published_one(tiny3, golden):
    """Teacher-forced: each step starts on the published latent, rolls replayed."""
    from retrace.diffusion.inversion import InversionState
    from retrace.diffusion.regularise import regularise
    from retrace.host.inversion import Walk, run_inversion
    from retrace.host.model import make_grid

    tensors, _ = golden("pix2pix_zero/tiny3_10/ddim+pix2pix-zero")
    amounts, errors = iter(tensors["rolls"].tolist()), []

    def inverter(denoise, clean, sigmas):
        yield InversionState(0, sigmas[0], clean, 0.0)
        for index in range(1, 11):
            sigma = sigmas[index]
            x = tensors["z_inv"][index - 1] * (1 + sigma**2).sqrt()
            eps = (x - denoise(x, sigma)) / sigma
            eps = regularise(eps, lambda size: int(next(amounts)), "published")
            errors.append(float((eps - tensors["inv_reg_eps"][index - 1]).abs().max()))
            yield InversionState(index, sigma, x, 0.0)

    run_inversion(tiny3, conditioning(tensors["emb_caption"]), {"samples": tensors["z_inv"][0]},
                  make_grid(tiny3, "diffusers", 10), Walk("test", inverter))
    assert max(errors) <= 2e-4
