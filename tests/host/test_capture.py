"""Attention-Capture: what it holds equals what the source branch computes, step by step."""

import pytest
import torch
from helpers_host import SMALL_UNET, conditioning, make_unet_model

pytestmark = pytest.mark.host

STEPS = 5


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SMALL_UNET)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(3)
    names = ("source", "target", "negative")
    return {name: conditioning(torch.randn(1, 77, 64, generator=generator)) for name in names}


@pytest.fixture(scope="module")
def trajectory(model, prompts):
    from retrace.host.inversion import invert

    samples = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(1))
    return invert(model, prompts["source"], {"samples": samples}, steps=STEPS)[0]


def plain_inputs(model, prompt, x, sigma) -> dict:
    """Return what forward hooks on the live modules see in one plain call of the model."""
    seen, handles = {}, []
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_k", "attn2.to_q")):
            handles.append(module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
            ))
    try:
        with torch.no_grad():
            model.model.apply_model(
                x, sigma.expand(len(x)), c_crossattn=prompt[0][0].expand(len(x), -1, -1)
            )
    finally:
        for handle in handles:
            handle.remove()
    return seen


def module_of(site) -> str:
    stage = {"input": "input_blocks.", "middle": "middle_block", "output": "output_blocks."}
    index = "" if site.stage == "middle" else site.index
    layer = "attn1" if site.kind == "self" else "attn2"
    return f"{stage[site.stage]}{index}.1.transformer_blocks.{site.sub_index}.{layer}"


def close(a: torch.Tensor, b: torch.Tensor, bound: float) -> None:
    assert float((a - b).norm()) <= bound * float(b.norm())


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_the_store_holds_what_the_live_source_computes(model, prompts, trajectory, dtype, bound):
    from retrace.attention.store import Slot
    from retrace.host.capture import capture_attention

    store, report = capture_attention(
        model, trajectory, dtype=dtype, negative=prompts["negative"]
    )
    assert report["row_forwards"] == STEPS * 2 * 2
    assert report["steps_per_pass"] > 1
    for step in (0, 3):
        level = STEPS - step
        x, sigma = trajectory.latents[level], trajectory.sigmas[level]
        for half, prompt in (("cond", prompts["source"]), ("uncond", prompts["negative"])):
            seen = plain_inputs(model, prompt, x, sigma)
            for site, _ in store.spec.sites:
                name = module_of(site)
                if site.kind == "self":
                    hidden = store.read(Slot("hidden", site, half), step).float()
                    close(hidden, seen[f"{name}.to_q"][0], bound)
                elif half == "cond":
                    for part in ("query", "key"):
                        recorded = store.read(Slot(part, site), step).float()
                        close(recorded, seen[f"{name}.to_{part[0]}"][1], bound)


def test_only_the_wanted_layers_and_steps_are_held(model, trajectory):
    from retrace.host.capture import capture_attention

    store, report = capture_attention(
        model, trajectory, kind="self", layers="output", window=(0.4, 1.0)
    )
    assert {site.stage for site, _ in store.spec.sites} == {"output"}
    assert {site.kind for site, _ in store.spec.sites} == {"self"}
    assert store.spec.steps == (2, 3, 4)
    assert report["row_forwards"] == 3 * 2


def test_a_capture_over_budget_is_refused_before_the_model_runs(model, trajectory):
    from retrace.diffusion.errors import PlanError
    from retrace.host.capture import capture_attention

    def fail(*args):
        raise AssertionError("the model was called")

    guarded = model.clone()
    guarded.set_model_unet_function_wrapper(fail)
    with pytest.raises(PlanError, match="budget"):
        capture_attention(guarded, trajectory, budget_mb=0.1)


def test_a_capture_leaves_the_model_as_it_was(model, trajectory):
    from retrace.host.capture import capture_attention

    options = repr(model.model_options)
    weights = [p.clone() for p in model.model.diffusion_model.parameters()]
    capture_attention(model, trajectory)
    assert repr(model.model_options) == options
    after = model.model.diffusion_model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


def test_an_interrupt_stops_a_capture_and_leaves_no_file(model, trajectory, tmp_path):
    import comfy.model_management as management
    from retrace.host.capture import capture_attention

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        capture_attention(model, trajectory, place="disk", folder=str(tmp_path))
    management.interrupt_current_processing(False)
    import gc

    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_two_captures_hold_the_same_bits(model, trajectory):
    from retrace.host.capture import capture_attention

    first, _ = capture_attention(model, trajectory)
    second, _ = capture_attention(model, trajectory)
    pairs = zip(first.tensors, second.tensors, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
