"""Edits beside LoRA, ControlNet, IPAdapter-style replacers, other packs' patches and backends."""

import logging

import pytest
import torch
from helpers_host import SD_LIKE, conditioning, make_unet_model, words_prompt
from helpers_textbook import (
    make_inputs,
    ours,
    prepare,
    relative,
    softmax_maps,
    textbook,
    times_values,
)

pytestmark = pytest.mark.host

STEPS = 4


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SD_LIKE, "SD15", seed=1)


def text(seed, **options):
    [[embedding, _]] = conditioning(
        torch.randn(1, 77, 48, generator=torch.Generator().manual_seed(seed))
    )
    return [[embedding, options]]


def inverted(model, source=None, pinned=True):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    trajectory = invert(model, source or text(1), {"samples": latent}, steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=pinned))


def p2p(target="a dog on a mat", **options):
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    pair = PromptPair(words_prompt("a cat on a mat"), words_prompt(target))
    return PromptToPrompt(pair, **{"cross_replace": (0.0, 0.8), **options})


def masactrl(**options):
    from retrace.attention.masactrl import MasaCtrl

    return MasaCtrl(start_step=1, start_layer=2, **options)


def plug_and_play():
    from retrace.attention.plug_and_play import PlugAndPlay

    return PlugAndPlay()


def run(model, controllers, trajectory, positive=None, **options):
    from retrace.host.editing import run_edit, with_controller

    for controller in controllers:
        model = with_controller(model, controller)
    return run_edit(model, trajectory, positive or text(2), text(3), **options)


def combos():
    return [
        [p2p()], [masactrl()], [plug_and_play()],
        [p2p(self_replace=(0.0, 0.0)), masactrl(mask_source=torch.eye(16)[None])],
    ]


@pytest.mark.parametrize("number", range(4))
def test_weight_patches_act_as_if_they_were_in_the_weights(number, model):
    patched, baked = model.clone(), make_unet_model(SD_LIKE, "SD15", seed=1)
    weights, generator = baked.model.state_dict(), torch.Generator().manual_seed(4)
    patches = {}
    for name in ("middle_block.1.transformer_blocks.0.attn2.to_k", "output_blocks.2.0.in_layers.2",
                 "output_blocks.2.1.transformer_blocks.0.attn1.to_q"):
        key = f"diffusion_model.{name}.weight"
        patches[key] = (torch.randn(weights[key].shape, generator=generator) * 0.05,)
        with torch.no_grad():
            weights[key].add_(patches[key][0])
    assert sorted(patched.add_patches(patches)) == sorted(patches)
    controllers = combos()[number]
    edited = [run(m, controllers, inverted(m)).edited for m in (patched, baked)]
    assert relative(*edited) <= 1e-5
    assert relative(edited[0], run(model, controllers, inverted(model)).edited) > 1e-3


def controlnet(seed=3):
    """Return the host's ControlNet around a small random network, with a hint."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    names = ("image_size", "in_channels", "model_channels", "num_res_blocks", "channel_mult",
             "num_heads", "use_spatial_transformer", "context_dim", "legacy",
             "transformer_depth_middle")
    network = comfy.cldm.cldm.ControlNet(
        **{name: SD_LIKE[name] for name in names}, hint_channels=3,
        transformer_depth=list(SD_LIKE["transformer_depth"]),
        operations=comfy.ops.disable_weight_init, device="cpu",
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    hint = torch.rand(1, 3, 128, 128, generator=generator)
    return control.set_cond_hint(hint, strength=0.5)


def test_a_controlnet_on_both_branches_is_applied_to_the_rows_of_both(model):
    """One prompt on both branches, a free source, no guidance: any P2P edit is the identity."""
    control = controlnet()
    source = text(1, control=control, control_apply_to_uncond=False)
    trajectory = inverted(model, source, pinned=False)
    options = {"positive": source, "cfg": 1.0}
    plain = run(model, [], trajectory, **options)
    edited = run(model, [p2p("a cat on a mat")], trajectory, **options)
    assert relative(edited.edited, plain.edited) <= 1e-5
    without = run(model, [p2p("a cat on a mat")], trajectory, positive=text(1), cfg=1.0)
    assert relative(without.edited, plain.edited) > 1e-3


def test_a_controlnets_own_attention_is_left_alone(model):
    """The network of the ControlNet runs with as many rows as it has conds, never edited."""
    control = controlnet()
    rows = []
    control.control_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["x"])), with_kwargs=True
    )
    trajectory = inverted(model)
    run(model, [p2p()], trajectory, positive=text(2, control=control), cfg=3.0)
    assert rows == [1] * STEPS  # on the target's conditional row only


def additive(generator):
    """Return an IPAdapter-style replacement of cross-attention, and what it adds."""
    tokens = {width: torch.randn(1, 4, width, generator=generator) for width in (32, 64)}

    def added(q, heads):
        image = tokens[q.shape[2]].expand(len(q), -1, -1)
        return 0.5 * times_values(softmax_maps(q, image, heads), image)

    class Attn2Replace:
        def __call__(self, q, k, v, extra):
            out = times_values(softmax_maps(q, k, extra["n_heads"]), v)
            return out + added(q, extra["n_heads"])

    return Attn2Replace(), added


@pytest.mark.parametrize("keys", ["layer", "block"])
def test_an_additive_cross_replacement_is_kept_exactly(keys, model):
    """IPAdapter, InstantID, PuLID: their addition belongs to the row's own queries."""
    replace, added = additive(torch.Generator().manual_seed(8))
    cases = [p2p(), plug_and_play()]
    facts, edit = prepare(model, cases, images=1)
    sites = [site for site in facts.sites if site.kind == "cross"]
    slots = {s.address if keys == "layer" else s.address[:2]: replace for s in sites}
    others = {"patches_replace": {"attn2": slots}}
    inputs = make_inputs(model, images=1)
    out = ours(model, edit, 1, *inputs, others=others)
    assert relative(out, textbook(model, cases, facts, 1, *inputs, added=added)) <= 1e-5
    assert set(slots.values()) == {replace}


def test_other_packs_attention_patches_run_before_ours_and_stay(model):
    def sharpen(q, k, v, extra):
        return q, k * 1.5, v

    def shift(out, extra):
        return out + 0.1

    others = {"patches": {
        "attn1_patch": [sharpen], "attn2_patch": [sharpen], "attn1_output_patch": [shift],
        "attn2_output_patch": [shift],
    }}
    cases = [p2p(), plug_and_play()]
    facts, edit = prepare(model, cases, images=2)
    inputs = make_inputs(model, images=2)
    out = ours(model, edit, 1, *inputs, others=others)
    assert relative(out, textbook(model, cases, facts, 1, *inputs, others=others)) <= 1e-5
    assert relative(out, textbook(model, cases, facts, 1, *inputs)) > 1e-3
    assert others["patches"]["attn1_patch"] == [sharpen]


@pytest.mark.parametrize("number", range(4))
def test_another_attention_backend_is_used_for_every_call(number, model):
    from comfy.ldm.modules.attention import attention_basic
    from retrace.host.compat import ATTENTION_TAKES_OPTIONS

    if not ATTENTION_TAKES_OPTIONS:
        pytest.skip("a host before 0.3.60 lets nobody choose its attention function")
    calls = []

    def backend(func, *args, **kwargs):
        calls.append(kwargs.get("mask"))
        return attention_basic(*args, **kwargs)

    other = model.clone()
    options = other.model_options["transformer_options"]
    options["optimized_attention_override"] = backend
    trajectory, controllers = inverted(model), combos()[number]
    edited = run(other, controllers, trajectory).edited
    assert len(calls) >= STEPS * 14  # 7 self- and 7 cross-attention layers
    assert all(mask is None for mask in calls)  # no backend has to know masks
    assert relative(edited, run(model, controllers, trajectory).edited) <= 1e-4


def test_a_self_replacement_of_another_pack_is_kept_and_reported(model, caplog):
    def perturbed(q, k, v, extra):
        return v

    other = model.clone()
    other.set_model_attn1_replace(perturbed, "middle", 0)
    with caplog.at_level(logging.WARNING):
        result = run(other, [masactrl()], inverted(model))
    assert "perturbed (1 layers)" in result.report["also_replaces_self_attention"]
    assert "perturbed" in caplog.text
    assert "also_replaces_self_attention" not in run(model, [masactrl()], inverted(model)).report


def test_masks_are_refused_where_another_pack_replaces_the_layer(model):
    from retrace.diffusion.errors import HostError

    other = model.clone()
    other.set_model_attn1_replace(lambda q, k, v, extra: v, "output", 2)
    with pytest.raises(HostError, match=r"already replaces.*output\.2"):
        run(other, [masactrl(mask_source=torch.eye(16)[None])], inverted(model))


def snapshot(options):
    """Return options as nested structure of object identities."""
    if isinstance(options, dict):
        return {key: snapshot(value) for key, value in options.items()}
    if isinstance(options, list):
        return [id(options), *map(snapshot, options)]
    return id(options)


@pytest.mark.parametrize("number", range(4))
def test_a_run_leaves_options_hooks_and_weights_as_they_were(number, model):
    from retrace.host.editing import run_edit, with_controller

    carried = model.clone()
    carried.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    for controller in combos()[number]:
        carried = with_controller(carried, controller)
    before = snapshot(carried.model_options)
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    run_edit(carried, inverted(model), text(2), text(3))
    assert snapshot(carried.model_options) == before
    assert not carried.object_patches
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())
    assert not any(module._forward_hooks for module in model.model.modules())


def test_cutting_in_at_any_moment_leaves_the_model_as_it_was(comfy, model):
    """Fifty runs, each interrupted at a random layer; then one more equals an undisturbed one."""
    from retrace.attention.local_blend import LocalBlend
    from retrace.host.editing import run_edit, with_controller

    management = comfy.model_management
    generator = torch.Generator().manual_seed(11)
    countdown = [-1]

    def cut(q, k, v, extra):
        countdown[0] -= 1
        if countdown[0] == 0:
            management.interrupt_current_processing(True)
            management.throw_exception_if_processing_interrupted()
        return q, k, v

    carried = model.clone()
    carried.set_model_attn1_patch(cut)
    blend = LocalBlend(("cat",), ("dog",))
    for controller in (p2p(self_replace=(0.0, 0.0), blend=blend), plug_and_play()):
        carried = with_controller(carried, controller)
    trajectory = inverted(model)
    fresh = run_edit(carried, trajectory, text(2), text(3))
    before = snapshot(carried.model_options)
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    for _ in range(50):
        countdown[0] = int(torch.randint(1, STEPS * 7 + 1, (), generator=generator))
        with pytest.raises(management.InterruptProcessingException):
            run_edit(carried, trajectory, text(2), text(3))
        assert snapshot(carried.model_options) == before
        assert not any(module._forward_hooks for module in model.model.modules())
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())
    again = run_edit(carried, trajectory, text(2), text(3))
    assert torch.equal(again.edited, fresh.edited) and torch.equal(again.mask, fresh.mask)
