"""Gradients through models that the host loaded under inference mode."""

import pytest
import torch
from helpers_host import SMALL_UNET, make_inference_tensors, make_unet_model

pytestmark = pytest.mark.host

@pytest.fixture(params=["inference", "normal"])
def model(request, comfy):
    """A small UNet whose weights are inference tensors, as in the server, or normal ones."""
    model = make_unet_model(SMALL_UNET)
    if request.param == "inference":
        make_inference_tensors(model)
        assert next(model.model.parameters()).is_inference()
    return model


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 7, 64, generator=generator)
    return x, torch.tensor([2.0]), context


def gradient_of_context(base) -> torch.Tensor:
    x, sigma, context = inputs()
    context.requires_grad_(True)
    out = base.apply_model(x, sigma, c_crossattn=context)
    return torch.autograd.grad(out.square().mean(), context)[0]


def state(base) -> dict:
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


def test_gradient_equals_the_textbook_one_in_spite_of_inference_mode(model):
    from retrace.host.gradients import gradients

    plain = make_unet_model(SMALL_UNET).model  # same seed, same weights, normal tensors
    expected = gradient_of_context(plain)
    with torch.inference_mode(), gradients(model):
        found = gradient_of_context(model.model)
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)


def test_model_is_object_and_bit_identical_afterwards(model):
    from retrace.host.gradients import gradients

    before = state(model.model)
    bits = {name: tensor.clone() for name, tensor in before.items()}
    with torch.inference_mode(), gradients(model):
        gradient_of_context(model.model)
        assert all(not p.requires_grad for p in model.model.parameters())
    after = state(model.model)
    assert list(before) == list(after)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in bits.items())


def test_aliases_share_the_storage(model):
    from retrace.host.gradients import gradients

    pointers = {name: t.data_ptr() for name, t in state(model.model).items()}
    with gradients(model):
        assert pointers == {name: t.data_ptr() for name, t in state(model.model).items()}


def test_model_comes_back_when_the_block_fails(model):
    from retrace.host.gradients import checkpointing, gradients

    before = state(model.model)
    with pytest.raises(RuntimeError), gradients(model), checkpointing(model):
        raise RuntimeError("cancelled")
    assert all(tensor is before[name] for name, tensor in state(model.model).items())
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_tied_parameters_stay_tied():
    from retrace.host.gradients import gradients

    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    with gradients(module):
        assert module[1].weight is module[0].weight


def test_checkpointing_changes_no_bit_of_the_gradient(model):
    from retrace.host.gradients import checkpointing, gradients

    with gradients(model):
        expected = gradient_of_context(model.model)
        with checkpointing(model):
            found = gradient_of_context(model.model)
    assert torch.equal(found, expected)


def test_checkpointing_saves_fewer_bytes(model):
    from retrace.host.gradients import checkpointing, gradients

    def saved_bytes() -> int:
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        x, sigma, context = inputs()
        context.requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model.model.apply_model(x, sigma, c_crossattn=context)
        del out
        return total

    with gradients(model):
        plain = saved_bytes()
        with checkpointing(model):
            assert saved_bytes() < plain / 2


def test_running_out_of_memory_turns_checkpointing_on(model):
    import comfy.model_management
    from retrace.host.gradients import gradient_run

    calls = []

    def closure():
        calls.append(run.checkpointed)
        if not run.checkpointed:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
        return gradient_of_context(model.model)

    with gradient_run(model, mode="auto") as run:
        assert run(closure).abs().max() > 0
    assert calls == [False, True]
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_never_lets_the_error_through(model):
    import comfy.model_management
    from retrace.host.gradients import gradient_run

    def closure():
        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    with pytest.raises(comfy.model_management.OOM_EXCEPTION), \
            gradient_run(model, mode="never") as run:
        run(closure)


def test_remembering_changes_no_bit_and_skips_what_the_text_cannot_reach(model):
    from retrace.host.gradients import gradients
    from retrace.host.remembering import remembering

    first = model.model.diffusion_model.input_blocks[1][0]
    counted = []
    with gradients(model):
        expected = gradient_of_context(model.model)
        hook = first.in_layers[0].register_forward_hook(lambda *args: counted.append(1))
        with remembering(model):
            for _ in range(3):
                assert torch.equal(gradient_of_context(model.model), expected)
        hook.remove()
    assert len(counted) == 1
    assert not any("forward" in vars(module) for module in model.model.modules())
