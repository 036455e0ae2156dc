"""The Edit-Sampler on a real host model: rows, equality with the host's sampler, conduct."""

import pytest
import torch
from helpers_host import TokenizerOnly, conditioning, make_unet_model, rms

pytestmark = pytest.mark.host

SMALL = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1, "num_heads": 4,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 32,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SMALL)


@pytest.fixture(scope="module")
def clip(comfy):
    return TokenizerOnly()


def text(seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, 77, 32, generator=generator))


SOURCE, TARGET, NEGATIVE = 1, 2, 3


def latent(batch: int = 1, height: int = 8, width: int = 8) -> dict:
    generator = torch.Generator().manual_seed(7)
    return {"samples": torch.randn(batch, 4, height, width, generator=generator)}


def inverted(model, steps=10, batch=1, pinned=True, **options):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    trajectory, _, _ = invert(model, text(SOURCE), latent(batch), steps=steps, **options)
    return trajectory.replace(source_rule=SourceRule(pinned=pinned))


def controlled(model, clip, source="a cat on a mat", target="a dog on a mat", **options):
    from retrace.attention.prompt_to_prompt import PromptToPrompt
    from retrace.host.editing import with_controller
    from retrace.host.tokens import pair_prompts

    return with_controller(model, PromptToPrompt(pair_prompts(clip, source, target), **options))


def run(model, trajectory, **options):
    from retrace.host.editing import run_edit

    return run_edit(model, trajectory, text(TARGET), text(NEGATIVE), **options)


def test_published_settings_cost_fifty_rows_up_and_a_hundred_and_thirty_down(model, clip):
    trajectory = inverted(model, steps=50)
    assert dict(trajectory.report)["row_forwards"] == 50
    assert run(controlled(model, clip), trajectory).report["row_forwards"] == 130


def test_without_controller_it_equals_the_hosts_own_euler_sampler(comfy, model):
    from retrace.host.inversion import invert

    trajectory, noise, sigmas = invert(
        model, text(SOURCE), latent(), steps=12, schedule="normal"
    )
    ours = run(model, trajectory, cfg=4.0, reconstruct=False).edited
    with torch.no_grad():
        host = comfy.samplers.sample(
            model, torch.zeros_like(noise), text(TARGET), text(NEGATIVE), 4.0,
            torch.device("cpu"), comfy.samplers.ksampler("euler"), sigmas,
            latent_image=noise, disable_pbar=True,
        )
    assert float((ours - host).norm() / host.norm()) < 1e-4


def test_direct_inversion_returns_the_source_bit_for_bit(model, clip):
    trajectory = inverted(model)
    assert torch.equal(run(controlled(model, clip), trajectory).source, latent()["samples"])


def test_same_prompt_with_direct_inversion_and_no_guidance_rebuilds_the_image(model):
    from retrace.host.editing import run_edit

    errors = []
    for steps in (10, 20, 40):
        trajectory = inverted(model, steps=steps, pinned=False)
        result = run_edit(model, trajectory, text(SOURCE), None, cfg=1.0)
        errors.append(float((result.edited - latent()["samples"]).norm()))
    assert errors[0] > errors[1] > errors[2]


def test_two_runs_give_the_same_bits_and_leave_the_global_generator_alone(model, clip):
    trajectory, controller = inverted(model), controlled(model, clip)
    state = torch.get_rng_state()
    first, second = run(controller, trajectory).edited, run(controller, trajectory).edited
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_of_images_equals_single_images(model, clip):
    controller = controlled(model, clip)
    both = run(controller, inverted(model, batch=2)).edited
    single = run(controller, inverted(model, batch=1)).edited
    # randn fills a batch image by image: the first image is the same, but for the rounding of
    # kernels that depend on the batch's size, which the walk amplifies
    assert rms(both[:1], single) < 2e-3
    assert rms(both[1:], single) > 0.1


def test_mask_keeps_the_source_exactly_where_it_is_zero(model, clip):
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    result = run(controlled(model, clip), inverted(model), mask=mask)
    keep = result.edited[..., :3]  # away from the antialiased edge
    torch.testing.assert_close(keep, latent()["samples"][..., :3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(result.edited[..., 5:], latent()["samples"][..., 5:], atol=1e-2)


def test_cancelled_run_leaves_the_model_as_it_was(comfy, model, clip, monkeypatch):
    from retrace.host import editing

    trajectory, controller = inverted(model), controlled(model, clip)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    expected = run(controller, trajectory).edited
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 4:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(editing, "check_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(controller, trajectory)
    monkeypatch.undo()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert torch.equal(run(controller, trajectory).edited, expected)


def test_controller_does_not_change_the_model_it_was_given(model, clip):
    options = model.model_options["transformer_options"]
    before = set(options)
    controlled(model, clip)
    assert set(options) == before


def test_trajectory_of_another_model_is_refused(comfy, model):
    from retrace.diffusion.errors import TrajectoryError

    other = make_unet_model({**SMALL, "adm_in_channels": 8, "num_classes": "sequential"}, "SDXL")
    with pytest.raises(TrajectoryError, match="invert again with this model"):
        run(other, inverted(model))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": torch.full((1, 4, 8, 8), float("nan"))}, "NaN"),
        ({"samples": torch.zeros(1, 16, 8, 8)}, "16 channels"),
        ({"samples": torch.zeros(1, 4, 3, 8, 8)}, "video"),
        ({"samples": torch.zeros(0, 4, 8, 8)}, "empty"),
    ],
)
def test_latent_that_does_not_fit_is_refused(model, change, words):
    from retrace.diffusion.errors import LatentError
    from retrace.host.inversion import invert

    with pytest.raises(LatentError, match=words):
        invert(model, text(SOURCE), change, steps=4)


def test_zero_steps_are_refused(model):
    from retrace.diffusion.errors import ScheduleError
    from retrace.host.inversion import invert

    with pytest.raises(ScheduleError, match="steps must be"):
        invert(model, text(SOURCE), latent(), steps=0)


def test_controller_without_effect_is_refused(model, clip):
    from retrace.diffusion.errors import PlanError

    nothing = controlled(model, clip, cross_replace=(0.0, 0.0), self_replace=(0.0, 0.0))
    with pytest.raises(PlanError, match="would do nothing"):
        run(nothing, inverted(model))


def test_empty_prompt_and_word_count_are_refused(model, clip):
    from retrace.diffusion.errors import TokenMapError
    from retrace.host.tokens import pair_prompts

    with pytest.raises(TokenMapError, match="target prompt is empty"):
        pair_prompts(clip, "a cat", "  ")
    uneven = controlled(model, clip, target="a big dog on a mat", mode="replace")
    with pytest.raises(TokenMapError, match="same number of words"):
        run(uneven, inverted(model))
