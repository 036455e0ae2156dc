"""StyleDiffusion on small host models: gradients, conduct, batches, files, what values do."""

import json

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
IMAGE = torch.rand(1, 40, 48, 3, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def model(comfy):
    return make_unet_model(SMALL_UNET)


@pytest.fixture
def vision(comfy, tmp_path):
    """A random CLIP_VISION of the host's own class: 17 tokens of 32 channels."""
    from comfy.clip_vision import ClipVisionModel

    config = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "hidden_size": 32,
              "image_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
              "num_channels": 3, "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 16}
    (tmp_path / "vision.json").write_text(json.dumps(config))
    made = ClipVisionModel(str(tmp_path / "vision.json"))
    with torch.no_grad():
        for seed, weight in enumerate(made.model.parameters()):
            weight.copy_(random(*weight.shape, seed=seed) * 0.2)
            weight.requires_grad_(False)
    return made


def inverted(model, batch=1, source=SOURCE):
    from retrace.host.inversion import invert

    return invert(model, source, {"samples": random(batch, 4, 8, 8, seed=4)}, steps=STEPS)[0]


def train(model, trajectory, vision, image=IMAGE, negative=NEGATIVE, **settings):
    from retrace.host.style_diffusion import train

    return train(model, trajectory, negative, vision, image, **{**SETTINGS, **settings})


def edit(model, trajectory, **kwargs):
    from retrace.host.editing import run_edit

    return run_edit(model, trajectory, TARGET, NEGATIVE, **kwargs)


def state(model):
    base = model.model
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


def with_random_values(trajectory, target=0.5):
    from retrace.diffusion.trajectory import ValueRule

    change = random(STEPS, trajectory.batch, 2, 7, 64, seed=5)
    change[:, :, 0] += 1
    return trajectory.replace(modulations=change, value_rule=ValueRule(target))


def test_gradient_of_latent_and_maps_is_that_of_finite_differences(comfy):
    """In float64, through the host's UNet, of the values' change in one direction."""
    from retrace.diffusion.null_text import loss_gradient
    from retrace.host.gradients import differentiable, gradient_run, guided_models
    from retrace.host.guider import RowGuider
    from retrace.host.inversion import run_guider
    from retrace.host.style_diffusion import cross_sites
    from retrace.host.style_sampler import StyleSampler

    model = make_unet_model(SMALL_UNET, weights=torch.float64)
    trajectory = inverted(model)
    found = []

    class Probe(StyleSampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
                   denoise_mask=None, disable_pbar=False):
            with gradient_run(*guided_models(self.guider), mode="never"):
                options = differentiable(extra_args["model_options"])
                x = trajectory.latents[1].double().clone()
                level, anchor = trajectory.sigmas[1].double(), x + 0.1

                def measure(change):
                    cond, own = self.denoise_cond(x, level, change, anchor, 1, options)
                    return (cond - 0.3).square().flatten(1).mean(1) + own

                change = random(1, 2, 7, 64, seed=5).double()
                direction = random(1, 2, 7, 64, seed=6).double()
                _, gradient = loss_gradient(measure, change, 1.0)
                step = 3e-3  # the host rounds predictions to float32: fourth order, large steps
                far, near, back, last = (
                    float(measure(change + n * step * direction)) for n in (2, 1, -1, -2)
                )
                own = measure(change) - loss_gradient(
                    lambda c: (self.denoise_cond(x, level, c, anchor, 1, options)[0] - 0.3)
                    .square().flatten(1).mean(1), change, 1.0)[0]
                found.append((
                    float((gradient.double() * direction).sum()),
                    (8 * (near - back) - (far - last)) / (12 * step),
                    float(own.detach()),
                ))
            return noise

    guider = RowGuider(model, {"source": SOURCE, "negative": NEGATIVE})
    probe = Probe(guider, trajectory, random(1, 17, 64), cfg=7.5, checkpointing="never",
                  sites=cross_sites(model), map_weight=50.0, seed=0, start="published",
                  settings=SETTINGS)
    run_guider(guider, trajectory.clean, probe, trajectory.sigmas.flip(0))
    ((slope, expected, own),) = found
    assert own > 1e-6  # the maps do take part
    assert slope == pytest.approx(expected, rel=1e-5)


def test_loss_of_the_first_step_falls(model, vision):
    from retrace.host.style_sampler import StyleSampler

    trajectory, kept = inverted(model), []
    original = StyleSampler.sample

    def spying(self, *args, **kwargs):
        kept.append(self)
        return original(self, *args, **kwargs)

    StyleSampler.sample = spying
    try:
        train(model, trajectory, vision, inner_steps=15)
    finally:
        StyleSampler.sample = original
    losses = kept[0].states[0].losses[:, 0]
    assert float(losses[-1]) < 0.7 * float(losses[0])


@pytest.mark.parametrize("start", ["published", "identity"])
def test_reconstruction_under_guidance_gets_better(model, vision, start):
    trajectory = inverted(model)
    trained = train(model, trajectory, vision, inner_steps=40, start=start)[0]
    plain, better = edit(model, trajectory).source, edit(model, trained).source
    assert rms(better, trajectory.clean) < 0.8 * rms(plain, trajectory.clean)


def test_inference_mode_changes_no_bit_and_leaves_the_model_as_it_was(model, vision):
    expected = train(model, inverted(model), vision)[0].modulations
    served = make_inference_tensors(make_unet_model(SMALL_UNET))
    before = state(served)
    bits = {name: tensor.clone() for name, tensor in before.items()}
    generator = torch.random.get_rng_state()
    with torch.inference_mode():
        found = train(served, inverted(served), vision)[0].modulations
        again = train(served, inverted(served), vision)[0].modulations
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(tensor is before[name] for name, tensor in state(served).items())
    assert all(torch.equal(tensor, bits[name]) for name, tensor in before.items())


def test_another_seed_trains_other_values(model, vision):
    trajectory = inverted(model)
    one, other = (train(model, trajectory, vision, seed=s)[0].modulations for s in (0, 1))
    assert not torch.equal(one, other)


def test_cancelling_inside_an_inner_loop_leaves_the_model_as_it_was(
    model, vision, comfy, monkeypatch
):
    import comfy.model_management
    from retrace.host import optimising

    make_inference_tensors(model)
    trajectory, before = inverted(model), state(model)
    monkeypatch.setattr(optimising, "check_interrupted", cancelling_at(6))
    with torch.inference_mode(), \
            pytest.raises(comfy.model_management.InterruptProcessingException):
        train(model, trajectory, vision)
    assert all(tensor is before[name] for name, tensor in state(model).items())
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert "patches" not in model.model_options["transformer_options"]


def test_checkpointing_changes_no_bit(model, vision):
    trajectory = inverted(model)
    expected = train(model, trajectory, vision, checkpointing="never")[0]
    found = train(model, trajectory, vision, checkpointing="always")[0]
    assert torch.equal(found.modulations, expected.modulations)
    assert dict(found.report)["checkpointing"] is True


def test_images_of_a_batch_get_the_values_they_get_alone(model, vision):
    trajectory = inverted(model, batch=2)
    images = torch.cat([IMAGE, IMAGE.flip(2)])
    together = train(model, trajectory, vision, images)[0].modulations
    for image in range(2):
        one = slice(image, image + 1)
        alone = trajectory.replace(
            latents=trajectory.latents[:, one], clean=trajectory.clean[one]
        )
        found = train(model, alone, vision, images[one])[0].modulations
        assert rms(found, together[:, one]) < 1e-2 * rms(found, torch.zeros_like(found))
    assert rms(together[:, 0], together[:, 1]) > 1e-2


def test_keys_come_of_the_prompt_and_values_of_the_changed_one(model):
    """The hook's k is W_k c as ever, its v is W_v (c scale + shift)."""
    from retrace.attention.rows import SOURCE_COND
    from retrace.host.guider import RowGuider, Rows
    from retrace.host.inversion import run_guider
    from retrace.host.value_inputs import with_values

    trajectory = with_random_values(inverted(model))
    change, seen = trajectory.modulations[0], {}

    class Probe:
        def max_denoise(self, model_wrap, sigmas):
            return False

        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            def look(q, k, v, extra):
                seen["k"], seen["v"] = k, v
                return q

            options = with_values(extra_args["model_options"], {SOURCE_COND: change})
            replaces = {"attn2": {("input", 1): look}}
            options["transformer_options"]["patches_replace"] = replaces
            guider.denoise_rows([Rows(SOURCE_COND, "source", noise)], sigmas[0], options)
            return noise

    guider = RowGuider(model, {"source": SOURCE})
    run_guider(guider, trajectory.clean, Probe(), trajectory.sigmas.flip(0))
    layer = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2
    prompt = SOURCE[0][0]
    assert torch.allclose(seen["k"], layer.to_k(prompt), atol=1e-6)
    changed = prompt * change[:, 0] + change[:, 1]
    assert torch.allclose(seen["v"], layer.to_v(changed), atol=1e-5)


def test_target_uses_the_values_inside_its_window_only(model):
    trajectory = inverted(model)
    plain = edit(model, trajectory).edited
    free = edit(model, with_random_values(trajectory, target=0.0))
    assert torch.equal(free.edited, plain)  # nobody reads the source, whose values changed
    assert rms(free.source, edit(model, trajectory).source) > 1e-3
    some = [edit(model, with_random_values(trajectory, target=t)).edited for t in (0.34, 1.0)]
    assert rms(some[0], plain) > 1e-3
    assert rms(some[1], some[0]) > 1e-3


def test_values_that_change_nothing_change_no_bit(model):
    trajectory = inverted(model)
    change = torch.zeros(STEPS, 1, 2, 7, 64)
    change[:, :, 0] = 1
    same = edit(model, trajectory.replace(modulations=change))
    plain = edit(model, trajectory)
    assert torch.equal(same.edited, plain.edited)
    assert torch.equal(same.source, plain.source)


def test_prompt_to_prompt_maps_act_on_the_changed_values(model):
    """A target prompt that is the source's, its whole window: the edit is the source."""
    from helpers_host import words_prompt
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt
    from retrace.host.editing import run_edit, with_controller

    pair = PromptPair(words_prompt("a cat", 7), words_prompt("a cat", 7))
    controlled = with_controller(model, PromptToPrompt(pair, cross_replace=(0.0, 1.0)))
    trajectory = with_random_values(inverted(model), target=1.0)
    result = run_edit(controlled, trajectory, SOURCE, NEGATIVE)
    assert rms(result.edited, result.source) < 1e-4 * rms(result.source, torch.zeros(1))


def test_a_longer_target_prompt_gets_the_change_repeated(model):
    from retrace.host.editing import run_edit

    long = conditioning(random(1, 14, 64, seed=2))
    result = run_edit(model, with_random_values(inverted(model)), long, NEGATIVE)
    assert result.edited.isfinite().all()


def test_recorded_attention_is_that_of_the_changed_values(model):
    """Prompt-to-Prompt from a store and beside the source give the same edit."""
    from helpers_host import words_prompt
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt
    from retrace.diffusion.errors import TrajectoryError
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.capture import capture_attention
    from retrace.host.editing import with_controller

    trajectory = with_random_values(inverted(model).replace(source_rule=SourceRule(pinned=True)))
    store, _ = capture_attention(model, trajectory, dtype="fp32")
    asked = PromptToPrompt(
        PromptPair(words_prompt("a cat", 7), words_prompt("a dog", 7)), cross_replace=(0.0, 1.0)
    )
    live = edit(with_controller(model, asked), trajectory).edited
    replayed = edit(with_controller(model, asked, store), trajectory).edited
    assert rms(replayed, live) < 1e-4 * rms(live, torch.zeros(1))
    plain = trajectory.replace(modulations=None)
    with pytest.raises(TrajectoryError, match="another trajectory"):
        edit(with_controller(model, asked, store), plain)


def test_learned_values_survive_a_file(model, vision):
    from retrace.diffusion.trajectory_file import from_bytes, to_bytes
    from retrace.host.style_diffusion import set_window

    trained = set_window(train(model, inverted(model), vision)[0], 0.3)
    loaded = from_bytes(to_bytes(trained))
    assert loaded.value_rule == trained.value_rule
    assert torch.equal(loaded.modulations, trained.modulations)
    assert torch.equal(edit(model, loaded).edited, edit(model, trained).edited)


def test_fp16_weights_are_trained_with_fp32_state(vision, comfy):
    half = make_unet_model(SMALL_UNET, weights=torch.float16)
    trajectory = inverted(half)
    found = train(half, trajectory, vision, inner_steps=20)[0]
    assert found.modulations.dtype == torch.float32
    plain, better = edit(half, trajectory).source, edit(half, found).source
    assert rms(better, trajectory.clean) < rms(plain, trajectory.clean)


def test_sdxl_keeps_the_pooled_vector_and_learns_the_values(vision, comfy):
    from retrace.host.editing import run_edit

    config = {**SMALL_UNET, "adm_in_channels": 2816, "num_classes": "sequential"}
    model = make_unet_model(config, config_class="SDXL")

    def encode(seed):
        return [[random(1, 7, 64, seed=seed), {"pooled_output": random(1, 1280, seed=seed + 9)}]]

    trained = train(model, inverted(model, source=encode(1)), vision, negative=encode(3))[0]
    assert trained.modulations.shape == (STEPS, 1, 2, 7, 64)
    assert run_edit(model, trained, encode(2), encode(3)).edited.isfinite().all()


def test_round_trip_of_the_viewer_uses_the_values_at_every_step(model, vision):
    from retrace.host.viewing import round_trip

    trained = train(model, inverted(model), vision, inner_steps=20)[0]
    errors = round_trip(model, trained, 7.5, NEGATIVE)
    walked = edit(model, trained).source
    own = rms(walked, trained.clean) / rms(trained.clean, torch.zeros(1))
    assert errors[-1] == pytest.approx(own, rel=1e-3)


def test_loss_curve_is_a_picture(model, vision):
    _, curve = train(model, inverted(model), vision)
    assert curve.ndim == 4
    assert curve.shape[-1] == 3
    assert float(curve.mean()) > 0.8


@pytest.mark.parametrize(("settings", "says"), [
    ({"inner_steps": 0}, "inner step"), ({"learning_rate": 0.0}, "learning rate"),
    ({"start": "warm"}, "identity"), ({"map_weight": -1.0}, "map_weight"),
    ({"checkpointing": "x"}, "never"), ({"negative": []}, "negative"),
    ({"image": torch.rand(2, 8, 8, 3)}, "2 images"), ({"image": torch.rand(8, 8)}, "IMAGE"),
    ({"image": torch.full((1, 8, 8, 3), float("nan"))}, "NaN"),
])  # fmt: skip
def test_bad_settings_get_a_sentence(model, vision, settings, says):
    from retrace.diffusion.errors import RetraceError

    with pytest.raises(RetraceError, match=says):
        train(model, inverted(model), vision, **settings)


def test_what_is_no_clip_vision_is_refused(model):
    from retrace.diffusion.errors import HostError

    with pytest.raises(HostError, match="Load CLIP Vision"):
        train(model, inverted(model), object())


def test_trajectories_that_do_not_fit_get_a_sentence(model, vision):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.host.negative_prompt import invert_negative_prompt
    from retrace.host.null_text import optimise
    from retrace.host.style_diffusion import set_window

    trajectory = inverted(model)
    learned = with_random_values(trajectory)
    for call, says in (
        (lambda: train(model, trajectory.replace(solver="dpmpp_2m"), vision), "DDIM"),
        (lambda: train(model, trajectory.replace(source=None), vision), "invert again"),
        (lambda: train(model, invert_negative_prompt(trajectory, NEGATIVE), vision), "null"),
        (lambda: optimise(model, learned, NEGATIVE), "learned by StyleDiffusion"),
        (lambda: invert_negative_prompt(learned, NEGATIVE), "learned by StyleDiffusion"),
        (lambda: set_window(trajectory, 0.5), "Invert-StyleDiffusion"),
    ):
        with pytest.raises(TrajectoryError, match=says):
            call()


def test_a_target_prompt_of_an_odd_length_is_refused(model):
    from retrace.diffusion.errors import HostError
    from retrace.host.editing import run_edit

    other = conditioning(random(1, 9, 64, seed=2))
    with pytest.raises(HostError, match="same CLIP"):
        run_edit(model, with_random_values(inverted(model)), other, NEGATIVE)


def test_a_fraction_outside_its_range_is_refused(model):
    from retrace.diffusion.errors import PlanError
    from retrace.host.style_diffusion import set_window

    with pytest.raises(PlanError, match="between 0 and 1"):
        set_window(with_random_values(inverted(model)), 1.5)
