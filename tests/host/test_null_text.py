"""Null-text and negative-prompt inversion on small host models: conduct, batches, variants."""

import pytest
import torch
from helpers_host import (
    SMALL_UNET,
    cancelling_at,
    conditioning,
    make_inference_tensors,
    make_unet_model,
    rms,
)

pytestmark = pytest.mark.host

SETTINGS = {"inner_steps": 3, "early_stop": 0.0}
STEPS = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCE = conditioning(random(1, 7, 64, seed=1))
TARGET = conditioning(random(1, 7, 64, seed=2))
NEGATIVE = conditioning(random(1, 7, 64, seed=3))


@pytest.fixture
def model(comfy):
    return make_unet_model(SMALL_UNET)


def inverted(model, batch=1, source=SOURCE):
    from retrace.host.inversion import invert

    return invert(model, source, {"samples": random(batch, 4, 8, 8, seed=4)}, steps=STEPS)[0]


def optimise(model, trajectory, negative=NEGATIVE, **settings):
    from retrace.host.null_text import optimise

    return optimise(model, trajectory, negative, **{**SETTINGS, **settings})


def edit(model, trajectory, **kwargs):
    from retrace.host.editing import run_edit

    return run_edit(model, trajectory, TARGET, NEGATIVE, **kwargs)


def assert_close(found, expected):
    """Equal but for rounding, which three steps of a random network amplify."""
    assert rms(found, expected) < 1e-5 * rms(expected, torch.zeros_like(expected))


def state(model):
    base = model.model
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


def test_inference_mode_changes_no_bit_and_leaves_the_model_as_it_was(model):
    expected = optimise(model, inverted(model))[0].null_embeddings
    served = make_inference_tensors(make_unet_model(SMALL_UNET))
    before = state(served)
    bits = {name: tensor.clone() for name, tensor in before.items()}
    with torch.inference_mode():
        found = optimise(served, inverted(served))[0].null_embeddings
        again = optimise(served, inverted(served))[0].null_embeddings
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert all(tensor is before[name] for name, tensor in state(served).items())
    assert all(torch.equal(tensor, bits[name]) for name, tensor in before.items())


def test_cancelling_inside_an_inner_loop_leaves_the_model_as_it_was(model, comfy, monkeypatch):
    import comfy.model_management
    from retrace.host import optimising

    make_inference_tensors(model)
    trajectory, before = inverted(model), state(model)
    monkeypatch.setattr(optimising, "check_interrupted", cancelling_at(6))
    with torch.inference_mode(), \
            pytest.raises(comfy.model_management.InterruptProcessingException):
        optimise(model, trajectory)
    assert all(tensor is before[name] for name, tensor in state(model).items())
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_checkpointing_changes_no_bit(model):
    trajectory = inverted(model)
    expected = optimise(model, trajectory, checkpointing="never")[0]
    found = optimise(model, trajectory, checkpointing="always")[0]
    assert torch.equal(found.null_embeddings, expected.null_embeddings)
    assert dict(found.report)["checkpointing"] is True


def test_images_of_a_batch_get_the_embeddings_they_get_alone(model):
    trajectory = inverted(model, batch=2)
    together = optimise(model, trajectory)[0].null_embeddings
    for image in range(2):
        one = slice(image, image + 1)
        alone = trajectory.replace(
            latents=trajectory.latents[:, one], clean=trajectory.clean[one]
        )
        found = optimise(model, alone)[0].null_embeddings
        assert rms(found, together[:, one]) < 1e-3  # Adam turns rounding of tiny gradients to sign
    assert rms(together[:, 0], together[:, 1]) > 1e-3


def test_reconstruction_under_guidance_gets_better(model):
    trajectory = inverted(model)
    refined = optimise(model, trajectory, inner_steps=20, learning_rate=0.05)[0]
    plain, better = edit(model, trajectory).source, edit(model, refined).source
    assert rms(better, trajectory.clean) < 0.8 * rms(plain, trajectory.clean)


def test_single_branch_leaves_the_target_to_the_negative_prompt(model):
    trajectory = inverted(model)
    single = optimise(model, trajectory, variant="single-branch")[0]
    both = optimise(model, trajectory)[0]
    plain = edit(model, trajectory).edited
    assert_close(edit(model, single).edited, plain)
    assert not torch.allclose(edit(model, both).edited, plain, atol=1e-3)


def test_null_latent_walks_the_source_where_the_embeddings_led(model):
    trajectory = inverted(model)
    latent = optimise(model, trajectory, variant="null-latent")[0]
    text = optimise(model, trajectory)[0]
    walked = edit(model, text).source
    result = edit(model, latent)
    assert_close(result.source, walked)
    assert_close(result.edited, edit(model, trajectory).edited)
    assert result.report["row_forwards"] == 2 * STEPS  # target rows only: the source is pinned


def test_negative_of_another_length_is_optimised_and_edited(model):
    long = conditioning(random(1, 14, 64, seed=5))
    refined = optimise(model, inverted(model), long)[0]
    assert refined.null_embeddings.shape == (STEPS, 1, 14, 64)
    assert edit(model, refined).edited.isfinite().all()


def test_fp16_weights_are_optimised_with_fp32_state(comfy):
    model = make_unet_model(SMALL_UNET)
    expected = optimise(model, inverted(model))[0].null_embeddings
    half = make_unet_model(SMALL_UNET, weights=torch.float16)
    found = optimise(half, inverted(half))[0].null_embeddings
    assert found.dtype == torch.float32
    assert rms(found, expected) < 0.01
    moved = rms(found[-1:], NEGATIVE[0][0].expand_as(found[-1:]))
    assert moved > 0.005


def test_sdxl_keeps_the_pooled_vector_and_learns_the_tokens(comfy):
    config = {**SMALL_UNET, "adm_in_channels": 2816, "num_classes": "sequential"}
    model = make_unet_model(config, config_class="SDXL")

    def encode(seed):
        return [[random(1, 7, 64, seed=seed), {"pooled_output": random(1, 1280, seed=seed + 9)}]]

    trajectory = inverted(model, source=encode(1))
    refined = optimise(model, trajectory, encode(3))[0]
    assert refined.null_embeddings.shape == (STEPS, 1, 7, 64)
    from retrace.host.editing import run_edit

    assert run_edit(model, refined, encode(2), encode(3)).edited.isfinite().all()


def test_loss_curve_is_a_picture(model):
    _, curve = optimise(model, inverted(model))
    assert curve.ndim == 4
    assert curve.shape[-1] == 3
    assert 0 <= float(curve.min()) < 0.3
    assert float(curve.mean()) > 0.8


@pytest.mark.parametrize("settings", [{"cfg": 1.0}, {"inner_steps": 0}, {"variant": "x"}])
def test_settings_that_cannot_work_are_refused_before_any_work(model, settings):
    from retrace.diffusion.errors import PlanError

    with pytest.raises(PlanError):
        optimise(model, inverted(model), **settings)


def test_negative_prompt_source_needs_no_unconditional_row(model):
    from retrace.host.negative_prompt import invert_negative_prompt

    trajectory = inverted(model)
    result = edit(model, invert_negative_prompt(trajectory, NEGATIVE))
    assert result.report["row_forwards"] == 3 * STEPS
    unguided = edit(model, trajectory, cfg=1.0).source
    assert_close(result.source, unguided)


def test_negative_prompt_of_sdxl_takes_the_sources_pooled_vector_too(comfy):
    from retrace.host.editing import run_edit
    from retrace.host.negative_prompt import invert_negative_prompt

    config = {**SMALL_UNET, "adm_in_channels": 2816, "num_classes": "sequential"}
    model = make_unet_model(config, config_class="SDXL")

    def encode(seed):
        return [[random(1, 7, 64, seed=seed), {"pooled_output": random(1, 1280, seed=seed + 9)}]]

    trajectory = inverted(model, source=encode(1))
    found = run_edit(model, invert_negative_prompt(trajectory, encode(3)), encode(2), encode(3))
    asked = run_edit(model, trajectory, encode(2), encode(1))  # source prompt typed as negative
    assert_close(found.edited, asked.edited)


def test_interpolation_moves_from_the_source_to_the_negative_prompt(model):
    from retrace.host.negative_prompt import invert_negative_prompt

    trajectory = inverted(model)
    ends = [invert_negative_prompt(trajectory, NEGATIVE, f).null_embeddings[0] for f in (0.0, 1.0)]
    assert torch.allclose(ends[0], SOURCE[0][0])
    assert torch.allclose(ends[1], NEGATIVE[0][0], atol=1e-5)
    assert edit(model, invert_negative_prompt(trajectory, NEGATIVE, 0.5)).report[
        "row_forwards"] == 4 * STEPS


def test_pull_of_proximal_guidance_keeps_the_inversion_where_nothing_is_edited(model):
    from retrace.host.negative_prompt import invert_negative_prompt, with_proximal_guidance

    trajectory = invert_negative_prompt(inverted(model), NEGATIVE)
    asked = {"mode": "soft", "threshold": 1e6, "dilate": 0}  # nothing passes: nothing is edited
    pulled = with_proximal_guidance(model, pull_until=0.99, rate=1.0, **asked)
    free = with_proximal_guidance(model, pull_until=0.0, rate=1.0, **asked)
    assert rms(edit(model=pulled, trajectory=trajectory).edited, trajectory.clean) < 1e-5
    assert rms(edit(model=free, trajectory=trajectory).edited, trajectory.clean) > 1e-3


def test_refined_trajectories_survive_a_file(model):
    from retrace.diffusion.trajectory_file import from_bytes, to_bytes

    refined = optimise(model, inverted(model), variant="single-branch")[0]
    loaded = from_bytes(to_bytes(refined))
    assert loaded.null_rule == refined.null_rule
    assert torch.equal(loaded.null_embeddings, refined.null_embeddings)
