"""Cross-attention guidance on small host models: gradients, trials, conduct, composition."""

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

STEPS = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCE = conditioning(random(1, 7, 64, seed=1))
TARGET = conditioning(random(1, 7, 64, seed=2))
NEGATIVE = conditioning(random(1, 7, 64, seed=3))


@pytest.fixture
def model(comfy):
    return make_unet_model(SMALL_UNET)


def in_host(model, closure, dtype=torch.float32):
    """Run closure(guider, options) where the host has loaded the model and processed the conds."""
    import comfy.samplers
    from retrace.host.guider import RowGuider

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            closure(guider, extra_args["model_options"])
            return noise

    guider = RowGuider(model, {"source": SOURCE, "positive": TARGET, "negative": NEGATIVE})
    x = torch.zeros(1, 4, 8, 8)
    with torch.inference_mode():
        guider.sample(x, x, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True)


def weights_of(model):
    from retrace.host.model import attention_sites

    return {site: 1.0 for site in attention_sites(model) if site.kind == "cross"}


def distance(guider, options, model, source, target, sigma=1.5, mode="never"):
    """Return the loss and its gradient with respect to the target's latent."""
    from retrace.attention.rows import SOURCE_COND, TARGET_COND
    from retrace.host.guider import Rows
    from retrace.host.map_guidance import map_gradients

    pair = (Rows(SOURCE_COND, "source", source), Rows(TARGET_COND, "positive", target))
    losses, gradients, _ = map_gradients(
        guider, [pair], torch.tensor(sigma), options, weights_of(model), mode
    )
    return losses, gradients[TARGET_COND]


def test_gradient_equals_finite_differences_in_fp64(comfy):
    model = make_unet_model(SMALL_UNET, weights=torch.float64)
    found = []

    def closure(guider, options):
        source, target = (2 * random(1, 4, 8, 8, seed=s).double() for s in (5, 6))
        _, gradient = distance(guider, options, model, source, target)
        for seed in range(6):
            way = random(1, 4, 8, 8, seed=20 + seed).double()
            step = 1e-5 * way
            plus = distance(guider, options, model, source, target + step)[0]
            minus = distance(guider, options, model, source, target - step)[0]
            found.append((float((plus - minus) / 2e-5), float((gradient * way).sum())))

    in_host(model, closure)
    for measured, expected in found:
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_small_step_lowers_the_loss_in_a_hundred_trials_of_a_hundred(comfy):
    lowered = []
    for number in range(10):
        model = make_unet_model(SMALL_UNET, seed=number)

        def closure(guider, options, model=model, number=number):
            for trial in range(10):
                seed = 100 * number + 2 * trial
                source, target = (2 * random(1, 4, 8, 8, seed=seed + i) for i in (0, 1))
                sigma = 0.5 + trial
                before, gradient = distance(guider, options, model, source, target, sigma)
                length = 1e-3 * target.norm() / gradient.norm()
                after, _ = distance(
                    guider, options, model, source, target - length * gradient, sigma
                )
                lowered.append(bool(after < before))

        in_host(model, closure)
    assert lowered == [True] * 100


def test_checkpointing_changes_no_bit_of_the_gradient(model):
    found = {}

    def closure(guider, options):
        source, target = random(1, 4, 8, 8, seed=5), random(1, 4, 8, 8, seed=6)
        for mode in ("never", "always"):
            found[mode] = distance(guider, options, model, source, target, mode=mode)

    in_host(model, closure)
    assert all(
        torch.equal(a, b) for a, b in zip(found["never"], found["always"], strict=True)
    )


def test_equal_maps_leave_the_latent_alone(model):
    found = []

    def closure(guider, options):
        x = random(1, 4, 8, 8, seed=5)
        guider.conds["positive"] = guider.conds["source"]
        found.append(distance(guider, options, model, x, x.clone()))

    in_host(model, closure)
    assert float(found[0][0]) == 0
    assert not found[0][1].any()


def inverted(model, batch=1, pinned=False):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = {"samples": random(batch, 4, 8, 8, seed=4)}
    trajectory = invert(model, SOURCE, latent, steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=pinned))


def edit(model, trajectory, amount=0.05, controllers=(), **asked):
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.host.editing import run_edit, with_controller

    model = with_controller(model, AttentionGuidance(amount=amount, **asked))
    for controller in controllers:
        model = with_controller(model, controller)
    return run_edit(model, trajectory, TARGET, NEGATIVE)


def state(model):
    base = model.model
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


@pytest.mark.parametrize("published", [False, True])
def test_inference_mode_gives_the_same_bits_twice_and_an_unchanged_model(published, model):
    expected = edit(model, inverted(model), published=published).edited
    served = make_inference_tensors(make_unet_model(SMALL_UNET))
    before = state(served)
    with torch.inference_mode():
        trajectory = inverted(served)
        runs = [edit(served, trajectory, published=published).edited for _ in range(2)]
    assert torch.equal(runs[0], expected)
    assert torch.equal(runs[1], expected)
    assert all(tensor is before[name] for name, tensor in state(served).items())


def test_cancelling_inside_a_gradient_leaves_the_model_as_it_was(model, monkeypatch):
    import comfy.model_management
    from retrace.host import map_guidance

    make_inference_tensors(model)
    trajectory, before = inverted(model), state(model)
    monkeypatch.setattr(map_guidance, "check_interrupted", cancelling_at(4))
    with torch.inference_mode(), \
            pytest.raises(comfy.model_management.InterruptProcessingException):
        edit(model, trajectory, checkpointing="always")
    assert all(tensor is before[name] for name, tensor in state(model).items())
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_pinned_source_costs_four_rows_a_step(model):
    report = edit(model, inverted(model, pinned=True)).report
    # the source's maps, the target's maps with gradient, then both halves of the target
    assert report["row_forwards"] == (1 + 1 + 2) * STEPS
    assert len(report["gradient_norm"].split()) == STEPS


def test_guided_maps_come_closer_than_unguided_ones(model):
    trajectory = inverted(model, pinned=True)
    losses = [
        [float(loss) for loss in edit(model, trajectory, amount=amount).report["map_loss"].split()]
        for amount in (1e-6, 1.0)
    ]
    assert losses[0][0] == losses[1][0]
    assert sum(losses[1][1:]) < sum(losses[0][1:])


def test_images_of_a_batch_are_guided_as_if_alone(model):
    trajectory = inverted(model, batch=2)
    together = edit(model, trajectory).edited
    for image in range(2):
        one = slice(image, image + 1)
        alone = trajectory.replace(
            latents=trajectory.latents[:, one], clean=trajectory.clean[one]
        )
        scale = rms(together[one], torch.zeros(()))
        assert rms(edit(model, alone).edited, together[one]) < 1e-4 * scale


def test_it_composes_with_masactrl(model):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.host.editing import run_edit, with_controller

    trajectory = inverted(model, pinned=True)
    mutual = MasaCtrl(start_step=0, start_layer=2)
    both = edit(model, trajectory, controllers=[mutual]).edited
    alone = run_edit(with_controller(model, mutual), trajectory, TARGET, NEGATIVE).edited
    assert both.isfinite().all()
    assert not torch.allclose(both, alone)


def test_a_diverging_run_stops_with_advice(model):
    from retrace.diffusion.errors import DivergenceError

    before = state(model)
    with pytest.raises(DivergenceError, match="lower the amount"):
        edit(model, inverted(model), amount=1e6)
    assert all(tensor is before[name] for name, tensor in state(model).items())


def test_window_ends_the_guidance(model):
    report = edit(model, inverted(model, pinned=True), until=0.4).report
    assert len(report["gradient_norm"].split()) == 1
