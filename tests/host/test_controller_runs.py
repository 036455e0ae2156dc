"""Whole edits with LocalBlend, MasaCtrl and Plug-and-Play: masks, sizes, batches, rows, nodes."""

import pytest
import torch
from helpers_host import SD_LIKE, make_unet_model, words_prompt
from helpers_textbook import relative

pytestmark = pytest.mark.host

STEPS = 5


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SD_LIKE, "SD15", seed=1)


def text(seed):
    embedding = torch.randn(1, 77, 48, generator=torch.Generator().manual_seed(seed))
    return [[embedding * 8, {}]]  # strong words: maps with peaks


def inverted(model, size=(16, 16), batch=1):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(7))
    trajectory = invert(model, text(1), {"samples": latent}, steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=True))


def pair():
    from retrace.attention.prompt_to_prompt import PromptPair

    return PromptPair(words_prompt("a cat on a mat"), words_prompt("a dog on a mat"))


def run(model, controller, trajectory, **options):
    from retrace.host.editing import run_edit, with_controller

    return run_edit(with_controller(model, controller), trajectory, text(2), text(3), **options)


def blending(threshold=0.7, **options):
    from retrace.attention.local_blend import LocalBlend
    from retrace.attention.prompt_to_prompt import PromptToPrompt

    blend = LocalBlend(("cat",), ("dog",), threshold=threshold)
    return PromptToPrompt(pair(), blend=blend, **options)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 17)])
def test_a_blend_keeps_the_source_exactly_outside_its_mask(size, model):
    trajectory = inverted(model, size)
    result = run(model, blending(), trajectory)
    assert result.mask.shape == (1, size[0] * 8, size[1] * 8)
    mask = result.mask[:, None, ::8, ::8].bool().expand_as(result.edited)
    assert 0 < result.report["blend_area"] < 1
    assert result.report["blend_area"] == pytest.approx(float(result.mask.mean()))
    # the last blend works on states of the trajectory, the output on the clean latent it came from
    torch.testing.assert_close(
        result.edited[~mask], trajectory.clean[~mask], rtol=1e-5, atol=1e-5
    )
    assert (result.edited - trajectory.clean)[mask].abs().mean() > 1e-2


def test_images_of_a_batch_are_blended_as_they_are_alone(model):
    both = inverted(model, batch=2)
    one = both.replace(latents=both.latents[:, 1:], clean=both.clean[1:])
    together, alone = (run(model, blending(), t) for t in (both, one))
    # rounding differs with the batch, and the walk amplifies it
    assert relative(together.edited[1:], alone.edited) <= 1e-4
    assert float((together.mask[1:] != alone.mask).float().mean()) <= 0.01


def test_the_users_mask_and_the_blend_are_both_kept(model):
    user = torch.zeros(1, 128, 128)
    user[:, :64] = 1
    result = run(model, blending(threshold=0.1), inverted(model), mask=user)
    assert float(result.mask[:, 72:].max()) == 0 and float(result.mask[:, :56].max()) == 1


def test_an_empty_region_is_warned_about(model, caplog):
    from retrace.host.editing import blend_area

    assert blend_area(torch.zeros(1, 8, 8)) == 0 and "found no region" in caplog.text
    caplog.clear()
    assert blend_area(torch.ones(1, 8, 8)) == 1 and not caplog.text


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_controllers_evaluate_only_the_rows_they_read(cfg, model):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.plug_and_play import PlugAndPlay

    trajectory, halves = inverted(model), 1 if cfg == 1 else 2
    plain = STEPS * halves
    masactrl = run(model, MasaCtrl(2, 2), trajectory, cfg=cfg, reconstruct=False)
    assert masactrl.report["row_forwards"] == plain + 3 * halves
    features = run(model, PlugAndPlay(0.8, 0.4), trajectory, cfg=cfg, reconstruct=False)
    assert features.report["row_forwards"] == plain + 4
    blended = run(model, blending(), trajectory, cfg=cfg, reconstruct=False)
    assert blended.report["row_forwards"] == plain + STEPS


def test_masks_of_the_whole_picture_change_nothing_beside_plain_masactrl(model):
    from retrace.attention.masactrl import MasaCtrl

    trajectory = inverted(model)
    plain = run(model, MasaCtrl(1, 2), trajectory).edited
    masked = run(model, MasaCtrl(1, 2, mask_source=torch.ones(1, 64, 64)), trajectory).edited
    torch.testing.assert_close(masked, plain, rtol=1e-4, atol=1e-4)


def test_automatic_masks_are_given_back_with_the_edit(model):
    from retrace.attention.key_masks import AutoMask
    from retrace.attention.masactrl import MasaCtrl
    from retrace.host.model import attention_sites

    layers = sum(site.kind == "self" for site in attention_sites(model))
    trajectory, found = inverted(model, batch=2), {}
    for threshold in (0.2, 0.6):
        auto = AutoMask(pair().source, pair().target, ("cat",), ("dog",), threshold)
        # masked where no map is read after it, so that both runs read the same maps
        found[threshold] = run(model, MasaCtrl(STEPS - 1, layers - 1, auto=auto), trajectory)
    for name in ("foreground_source", "foreground_target"):
        low, high = (getattr(found[threshold], name) for threshold in (0.2, 0.6))
        assert low.shape == found[0.2].mask.shape == (2, 128, 128)
        assert bool((low >= high).all()) and 0 < float(high.mean()) < float(low.mean()) <= 1
    assert not torch.equal(found[0.6].foreground_source, found[0.6].foreground_target)
    plain = run(model, MasaCtrl(1, 2), trajectory)
    assert bool((plain.foreground_source == 1).all() and (plain.foreground_target == 1).all())


def test_two_runs_give_the_same_bits(model):
    from retrace.attention.plug_and_play import PlugAndPlay

    trajectory = inverted(model)
    for controller in (blending(), PlugAndPlay()):
        first, second = (run(model, controller, trajectory) for _ in range(2))
        assert torch.equal(first.edited, second.edited) and torch.equal(first.mask, second.mask)


def test_the_nodes_put_their_controllers_on_a_clone(model):
    from retrace.host.editing import get_plan
    from retrace.nodes.controllers import P2PController
    from retrace.nodes.structure import MasaCtrlController, PnPController

    mask = torch.ones(64, 64)
    (with_p2p, *_) = P2PController.execute(
        model, pair(), "auto", 0.4, 0.0, blend_source="cat", blend_target="dog",
        blend_threshold=0.4, blend_start=0.1, blend_subtract="mat",
    ).args
    (with_masactrl, *_) = MasaCtrlController.execute(with_p2p, 4, -1, mask_source=mask).args
    (with_auto, *_) = MasaCtrlController.execute(
        model, 0.1, 2, prompts=pair(), words_source="cat", words_target="dog, mat"
    ).args
    (with_pnp, *_) = PnPController.execute(model, 0.8, 0.5).args
    assert [c.name for c in get_plan(with_masactrl).controllers] == [
        "P2P-Controller", "MasaCtrl-Controller",
    ]
    blend = get_plan(with_p2p).controllers[0].blend
    assert (blend.source, blend.target, blend.subtract) == (("cat",), ("dog",), ("mat",))
    assert (blend.threshold, blend.start) == (0.4, 0.1)
    assert get_plan(with_auto).controllers[0].auto.target == ("dog", "mat")
    assert [c.name for c in get_plan(with_pnp).controllers] == ["PnP-Controller"]
    assert not get_plan(model).controllers
    (without, *_) = P2PController.execute(model, pair(), "auto", 0.4, 0.0).args
    assert get_plan(without).controllers[0].blend is None


@pytest.mark.parametrize("name", ["MasaCtrlController", "PnPController"])
def test_every_input_and_output_says_what_it_is(name, comfy):
    import retrace.nodes.structure as structure

    schema = getattr(structure, name).define_schema()
    assert all(field.tooltip for field in [*schema.inputs, *schema.outputs])
    assert "et al." in schema.description
