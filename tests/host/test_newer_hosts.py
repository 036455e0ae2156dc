"""What later ComfyUIs changed, by stand-ins on this one: same edits, same bits, clean ends.

Attention tensors in containers with unknown keywords (0.32, 0.40), an interrupt that is no
Exception (0.20), fp16 on links (0.18), schema fields, the one slot of attention overrides, the
compiler's flag (0.35) and several GPUs (0.23).
"""

import dataclasses
import functools
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from helpers_host import SD_LIKE, conditioning, make_unet_model, words_prompt
from helpers_pixart import SIZE, make_pixart

pytestmark = pytest.mark.host

STEPS = 3
UNET = (77, 48, (16, 16))  # tokens, width, latent
PIXART = (6, 24, SIZE)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet(comfy):
    return make_unet_model(SD_LIKE, "SD15", seed=1), UNET


@pytest.fixture(scope="module")
def pixart(comfy):
    return make_pixart("alpha MS"), PIXART


@pytest.fixture(params=["unet", "pixart"])
def family(request):
    """A model, and the shape of its texts and latents."""
    return request.getfixturevalue(request.param)


def text(shape, seed):
    return conditioning(random(1, shape[0], shape[1], seed=seed) * 2)


def inverted(family, latent=None):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    model, shape = family
    latent = random(1, 4, *shape[2], seed=7) if latent is None else latent
    trajectory = invert(model, text(shape, 1), {"samples": latent}, steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=True))


def controllers(shape):
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    length = shape[0]
    pair = PromptPair(words_prompt("a cat sat on", length), words_prompt("a dog sat on", length))
    return {
        "plain": [],
        "p2p": [PromptToPrompt(pair, cross_replace=(0.0, 0.8))],
        "masactrl": [MasaCtrl(start_step=1, start_layer=1)],
        "guidance": [AttentionGuidance(amount=0.1)],
    }


def edit(family, name="p2p", trajectory=None, **options):
    from retrace.host.editing import run_edit, with_controller

    model, shape = family
    trajectory = trajectory or inverted(family)
    for controller in controllers(shape)[name]:
        model = with_controller(model, controller)
    return run_edit(model, trajectory, text(shape, 2), text(shape, 3), cfg=4.0, **options).edited


class Container:
    """The newer hosts' owner of a tensor: it can be taken out once."""

    def __init__(self, tensor):
        self.tensor = tensor

    def take(self):
        tensor, self.tensor = self.tensor, None
        assert tensor is not None, "this container was emptied before"
        return tensor


@pytest.fixture
def newer_attention(comfy, monkeypatch):
    """Let the host's layers call attention as 0.40 does; returns how many calls there were."""
    import comfy.ldm.modules.attention as attention
    import comfy.ldm.pixart.blocks as blocks
    from retrace.host import attach, pixart

    function, calls = attention.optimized_attention.__wrapped__, []

    @functools.wraps(function)
    def newer(*args, **kwargs):
        preferred = kwargs.pop("preferred_attention", None)
        override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
        if isinstance(args[0], Container):
            if override is not None and hasattr(override, "container_function"):
                return override.container_function(*args, _inside_attn_wrapper=True, **kwargs)
            args = (*(box.take() for box in args[:3]), *args[3:])
        calls.append("layer" if preferred else "retrace")
        if override is not None:
            return override(function, *args, _inside_attn_wrapper=True, **kwargs)
        return function(*args, **kwargs)

    def from_layer(q, k, v, heads, **kwargs):
        boxes = (Container(tensor) for tensor in (q, k, v))
        return newer(*boxes, heads, preferred_attention=True, low_precision_attention=True,
                     **kwargs)  # fmt: skip

    for module in (attention, blocks):
        monkeypatch.setattr(module, "optimized_attention", functools.wraps(function)(from_layer))
    monkeypatch.setattr(attention, "optimized_attention_masked", from_layer)
    for module in (attach, pixart):
        monkeypatch.setattr(module, "optimized_attention", newer)
    return calls


@pytest.mark.parametrize("name", ["plain", "p2p", "masactrl", "guidance"])
def test_attention_in_containers_gives_the_same_bits(name, family, request):
    trajectory = inverted(family)
    expected = edit(family, name, trajectory)
    calls = request.getfixturevalue("newer_attention")
    assert torch.equal(edit(family, name, trajectory), expected)
    assert "layer" in calls


def test_gradients_flow_through_attention_in_containers(unet, request):
    from retrace.host.null_text import optimise

    trajectory = inverted(unet)
    settings = {"cfg": 4.0, "inner_steps": 2, "early_stop": 0.0}
    expected, _ = optimise(unet[0], trajectory, text(UNET, 3), **settings)
    calls = request.getfixturevalue("newer_attention")
    found, _ = optimise(unet[0], trajectory, text(UNET, 3), **settings)
    assert torch.equal(found.null_embeddings, expected.null_embeddings)
    assert "layer" in calls


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("name", ["p2p", "guidance"])
def test_a_backend_in_the_one_slot_is_used_by_all_calls(name, newest, unet, newer_attention):
    """ModelAttentionBackend writes the slot; its override may take containers itself."""
    model, shape = unet
    expected = edit(unet, name)
    seen = []

    def backend(func, q, k, v, heads, *args, **kwargs):
        seen.append("plain")
        return func(q, k, v, heads, *args, **kwargs)

    def whole(q, k, v, heads, *args, **kwargs):
        from comfy.ldm.modules.attention import attention_pytorch

        seen.append("container")
        kwargs = {key: kwargs[key] for key in ("attn_precision",) if key in kwargs}
        return attention_pytorch(q.take(), k.take(), v.take(), heads, **kwargs)

    if newest:
        backend.container_function = whole
    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = backend
    found = edit((other, shape), name)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert len(seen) >= STEPS * 14 and ("container" in seen) == newest
    slot = other.model_options["transformer_options"]["optimized_attention_override"]
    assert slot is backend


def capture(family, trajectory):
    from retrace.host.capture import capture_attention

    return capture_attention(family[0], trajectory)


def null_text(family, trajectory):
    from retrace.host.null_text import optimise

    return optimise(family[0], trajectory, text(family[1], 3), cfg=4.0, inner_steps=2,
                    early_stop=0.0)  # fmt: skip


def edited(name):
    return lambda family, trajectory: edit(family, name, trajectory)


RUNS = {
    "inversion": lambda family, trajectory: inverted(family),
    **{name: edited(name) for name in ("plain", "p2p", "masactrl", "guidance")},
    "capture": capture, "null-text": null_text,
}  # fmt: skip


def traces(model):
    """Return what a run could leave behind: hooks, shadowed forwards, weights as objects."""
    return [
        (len(module._forward_hooks), sorted(vars(module).keys() & {"forward"}),
         [id(weight) for weight in module._parameters.values()])
        for module in model.model.modules()
    ]  # fmt: skip


@contextmanager
def cut_at(model, moment):
    """Cancel at the model's so-manieth call; yields a list that has an entry for each call."""
    import comfy.model_management as management

    calls = []

    def count(*_):
        calls.append(None)
        if len(calls) == moment:
            management.interrupt_current_processing(True)
        management.throw_exception_if_processing_interrupted()

    network = model.model.diffusion_model
    block = network.time_embed if hasattr(network, "time_embed") else network.blocks[2]
    handle = block.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupt_that_is_no_exception_leaves_nothing_behind(name, family, monkeypatch):
    import comfy.model_management as management

    class Interrupt(BaseException):
        pass

    model, trajectory = family[0], inverted(family)
    before = traces(model)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    with cut_at(model, 0) as calls:
        RUNS[name](family, trajectory)
    monkeypatch.setattr(management, "InterruptProcessingException", Interrupt)
    for moment in {1, len(calls)}:
        with cut_at(model, moment), pytest.raises(Interrupt):
            RUNS[name](family, trajectory)
        assert traces(model) == before
    state = model.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


def test_fp16_on_links_is_computed_in_fp32(family):
    latent = random(1, 4, *family[1][2], seed=7).half()
    mask = torch.ones(1, 64, 64).half()
    mask[:, :, :32] = 0
    half, full = (inverted(family, latent.to(kind)) for kind in (torch.float16, torch.float32))
    assert half.latents.dtype == half.clean.dtype == torch.float32
    assert torch.equal(half.latents, full.latents)
    found = edit(family, trajectory=half, mask=mask)
    assert torch.equal(found, edit(family, trajectory=full, mask=mask.float()))


def test_fp16_pictures_and_masks_are_measured_and_drawn_in_fp32():
    from retrace.attention.heatmaps import heat_sheets
    from retrace.evaluation.edit_metrics import compare_images

    halves = [random(1, 32, 32, 3, seed=seed).sigmoid().half() for seed in (1, 2)]
    mask, maps = torch.eye(32)[None].half(), random(1, 1, 8, 8, seed=3).sigmoid()
    full = [picture.float() for picture in halves]
    assert compare_images(*halves, mask).report() == compare_images(*full, mask.float()).report()
    sheets = (heat_sheets(image, ["cat"], maps, {"mask": part})
              for image, part in ((halves[0], mask), (full[0], mask.float())))  # fmt: skip
    assert torch.equal(*sheets)


@pytest.mark.parametrize("lost", ["search_aliases", "is_experimental", "category", "description"])
def test_schema_fields_that_a_host_lacks_are_left_out(lost, comfy, monkeypatch):
    from retrace.nodes import types

    known = {"node_id", "display_name", "search_aliases", "is_experimental", "category",
             "description", "inputs", "outputs"} - {lost}  # fmt: skip
    theirs = dataclasses.make_dataclass("Schema", [(name, object, None) for name in known])
    names = {field.name for field in dataclasses.fields(theirs)}
    monkeypatch.setattr(types, "SCHEMA_FIELDS", names)
    monkeypatch.setattr(types, "io", SimpleNamespace(Schema=theirs))
    made = types.schema(node_id="x", display_name="X", description="d", is_experimental=True,
                        search_aliases=["y"])  # fmt: skip
    assert made.node_id == "x" and made.display_name == "X" and not hasattr(made, lost)


def test_model_calls_ask_not_to_be_compiled_and_stay_on_one_gpu(unet, caplog, monkeypatch):
    """0.35's compiler replays calls without Python; 0.23's clones on other GPUs lack the hooks."""
    import comfy.samplers

    model, shape = unet
    called, calc = [], comfy.samplers.calc_cond_batch

    def spread(base, conds, x, sigma, model_options):
        called.append(model_options)
        return calc(base, conds, x, sigma, model_options)

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", spread)
    other = model.clone()
    other.model_options["multigpu_clones"] = {"cuda:1": None}
    monkeypatch.setattr(
        type(other), "get_additional_models_with_key", lambda self, key: ["a clone"]
    )
    with caplog.at_level(logging.WARNING):
        edit((other, shape))
    assert called and all("multigpu_clones" not in options for options in called)
    assert all(options["transformer_options"]["disable_comfy_compiler"] for options in called)
    assert "one GPU" in caplog.text
    assert "disable_comfy_compiler" not in other.model_options["transformer_options"]
