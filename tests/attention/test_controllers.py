"""LocalBlend, MasaCtrl and Plug-and-Play: what they ask for, and what they refuse."""

import copy

import pytest
import torch
from helpers_host import words_prompt
from retrace.attention.key_masks import AutoMask, make_auto_mask
from retrace.attention.local_blend import LocalBlend, make_blend
from retrace.attention.masactrl import AUTO_LAYER, MasaCtrl
from retrace.attention.plan import EditPlan, RunFacts
from retrace.attention.plug_and_play import PlugAndPlay
from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt
from retrace.attention.rows import SOURCE_COND, SOURCE_UNCOND
from retrace.attention.run import EditRun
from retrace.attention.sites import ResidualBlock, Site, nearest_grid
from retrace.attention.windows import parse_words
from retrace.diffusion.errors import BlockSelectionError, LatentError, PlanError, TokenMapError

SOURCE, TARGET = words_prompt("a cat on a bench"), words_prompt("a dog on a bench")
PAIR = PromptPair(SOURCE, TARGET)


def unet_sites(levels, depth=1):
    """Return sites of a UNet: levels of (stage, first block, blocks, downsample), in call order."""
    sites, orders = [], {"self": 0, "cross": 0}
    for stage, first, blocks, down in levels:
        for index in range(first, first + blocks):
            for sub in range(depth):
                for kind in orders:
                    sites.append(Site(kind, stage, index, sub, orders[kind], down))
                    orders[kind] += 1
    return tuple(sites)


SD15 = unet_sites([
    ("input", 1, 2, 1), ("input", 4, 2, 2), ("input", 7, 2, 4), ("middle", 0, 1, 8),
    ("output", 3, 3, 4), ("output", 6, 3, 2), ("output", 9, 3, 1),
])
TINY = unet_sites([("input", 1, 1, 1), ("output", 2, 1, 1)])


def facts(sites=SD15, steps=50, **changes):
    return RunFacts(**{
        "steps": steps, "start_step": 0, "height": 64, "width": 64, "images": 1, "sites": sites,
        **changes,
    })


def test_local_blend_reads_the_five_quarter_layers_of_stable_diffusion():
    sites = nearest_grid(SD15, 4)
    assert sorted(site.order for site in sites) == [4, 5, 7, 8, 9]
    assert {site.downsample for site in sites} == {4} and "middle" not in {s.stage for s in sites}


def test_local_blend_reads_the_nearest_grid_where_there_is_no_quarter():
    sites = unet_sites([("input", 1, 1, 1), ("input", 3, 1, 2), ("middle", 0, 1, 4)])
    assert {site.downsample for site in nearest_grid(sites, 4)} == {2}


@pytest.mark.parametrize("side, grid", [(64, 16), (128, 32), (32, 16), (16, 16), (48, 12)])
def test_a_blend_reads_a_quarter_of_the_latent_but_no_fewer_than_about_16_tokens(side, grid):
    _, blend = blend_run(LocalBlend((), ("dog",)), height=side, width=side)
    assert blend.grid == (grid, grid)


def blend_run(blend, **changes):
    control = PromptToPrompt(PAIR, blend=blend).prepare(facts(**changes))
    return control, control.blend


def test_a_blend_keeps_the_source_outside_the_words_region():
    control, _ = blend_run(LocalBlend(("cat",), ("dog",)), steps=10)
    maps = torch.zeros(1, 256, 2)
    maps[:, :16, 0] = 1  # the first row of tokens
    control.observe(0, SD15[0], maps, maps)
    source, target = torch.zeros(1, 4, 64, 64), torch.ones(1, 4, 64, 64)
    assert control.after_step(1, torch.tensor(1.0), source, target) is target
    out = control.after_step(2, torch.tensor(1.0), source, target)
    assert torch.equal(out[0, 0, :8], torch.ones(8, 64))  # pooled by one token: two rows of four
    assert torch.equal(out[0, 0, 8:], torch.zeros(56, 64))
    assert torch.equal(control.blend_mask()[0], out[0, 0])


def test_a_blend_at_an_odd_size_and_another_shape_covers_the_same_part():
    control, blend = blend_run(LocalBlend((), ("dog",)), height=37, width=90)
    assert blend.grid == (10, 23)
    maps = torch.zeros(1, 230, 2)
    maps[:, -23:, 0] = 1
    control.observe(0, SD15[0], None, maps)
    out = blend.apply(20, torch.zeros(1, 4, 37, 90), torch.ones(1, 4, 37, 90))
    assert out[0, 0, -1].min() == 1 and out[0, 0, : 37 * 8 // 10 - 4].max() == 0


def test_subtracted_words_are_taken_out_of_the_region():
    control, blend = blend_run(LocalBlend(("cat",), ("dog",), ("bench",)))
    maps = torch.zeros(1, 256, 2)
    maps[:, :, 0], maps[:, :128, 1] = 1, 1
    control.observe(0, SD15[0], maps, maps)
    out = blend.apply(30, torch.zeros(1, 4, 64, 64), torch.ones(1, 4, 64, 64))
    assert out[0, 0, :32].max() == 0 and out[0, 0, 32:].min() == 1


def test_a_word_without_attention_is_no_region_instead_of_nan():
    control, blend = blend_run(LocalBlend(("cat",), ("dog",)))
    control.observe(0, SD15[0], torch.zeros(1, 256, 2), torch.zeros(1, 256, 2))
    source = torch.zeros(1, 4, 64, 64)
    assert torch.equal(blend.apply(30, source, source + 1), source)


def test_each_image_of_a_batch_has_its_own_region():
    control, blend = blend_run(LocalBlend((), ("dog",)), images=2)
    maps = torch.zeros(2, 256, 2)
    maps[0, :128, 0], maps[1, 128:, 0] = 1, 5
    control.observe(0, SD15[0], None, maps)
    out = blend.apply(30, torch.zeros(2, 4, 64, 64), torch.ones(2, 4, 64, 64))
    assert out[0, 0, 0].min() == 1 and out[0, 0, -1].max() == 0
    assert out[1, 0, 0].max() == 0 and out[1, 0, -1].min() == 1


def test_a_blend_word_that_is_not_there_is_named_with_the_words_that_are():
    with pytest.raises(TokenMapError, match=r"'zebra'.*'cat'"):
        PromptToPrompt(PAIR, blend=LocalBlend(("zebra",)))
    with pytest.raises(TokenMapError, match=r"'sky'.*'dog'"):
        PromptToPrompt(PAIR, blend=LocalBlend(("cat",), ("dog",), ("sky",)))


def test_no_words_are_no_blend_and_only_subtracted_words_are_an_error():
    assert make_blend((), ()) is None
    with pytest.raises(TokenMapError, match="marks what may change"):
        make_blend((), (), ("bench",))


def test_words_are_read_from_commas_and_lines():
    assert parse_words("cat, wooden bench\n cat,,") == ("cat", "wooden bench")


def test_a_blend_reads_the_source_at_every_step_and_nothing_does_without_one():
    plain = EditRun(facts(), EditPlan((PromptToPrompt(PAIR),)).prepare(facts()))
    blend = PromptToPrompt(PAIR, blend=LocalBlend(("cat",), ("dog",)))
    blending = EditRun(facts(), EditPlan((blend,)).prepare(facts()))
    assert sum(len(plain.source_roles(step)) for step in range(50)) == 30
    assert all(blending.source_roles(step) == {SOURCE_COND} for step in range(50))
    assert blending.blends and not plain.blends


def test_masactrl_acts_from_the_published_step_and_layer_in_both_halves():
    control = MasaCtrl(4, 10).prepare(facts())
    acting = {(s, site.order) for s in range(50) for site in SD15 if site.kind == "self"
              and control.self_rule(s, site, "uncond") == control.self_rule(s, site, "cond")
              == ("target", "source", "source", None)}
    assert acting == {(s, order) for s in range(4, 50) for order in range(10, 16)}


def test_masactrls_start_below_one_is_a_fraction_of_the_steps():
    assert MasaCtrl(0.08, 10).prepare(facts()).start_step == 4
    assert MasaCtrl(0.08, 10).prepare(facts(steps=25)).start_step == 2
    assert MasaCtrl(4, 10).prepare(facts(steps=25)).start_step == 4
    assert MasaCtrl(0, 10).prepare(facts()).start_step == 0


@pytest.mark.parametrize(("layers", "expected"), [(16, 10), (70, 44), (11, 7), (7, 4)])
def test_the_automatic_layer_is_the_published_place(layers, expected):
    assert MasaCtrl(start_layer=AUTO_LAYER).first_layer(layers) == expected


def test_a_layer_that_is_not_there_is_refused_with_the_number_there_is():
    with pytest.raises(BlockSelectionError, match=r"start_layer 16.*16 self-attention layers"):
        MasaCtrl(start_layer=16).prepare(facts())
    with pytest.raises(BlockSelectionError, match="has 0 self-attention layers"):
        MasaCtrl().prepare(facts(sites=()))


def test_masactrl_that_never_starts_is_refused():
    with pytest.raises(PlanError, match="would do nothing"):
        MasaCtrl(start_step=50).prepare(facts())


def test_masks_are_refused_when_empty_or_of_another_batch():
    with pytest.raises(LatentError, match="selects nothing"):
        MasaCtrl(mask_source=torch.zeros(1, 8, 8))
    with pytest.raises(LatentError, match="3 images but the trajectory 1"):
        MasaCtrl(mask_target=torch.ones(3, 8, 8)).prepare(facts())


def test_one_mask_stands_for_both():
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    control = MasaCtrl(4, 10, mask_target=mask).prepare(facts())
    keys = control.key_mask(5, SD15[-2])
    assert torch.equal(keys.source.float(), keys.target)
    assert float(keys.target.mean()) == 0.5 and control.key_mask(3, SD15[-2]) is None


def test_automatic_masks_need_words_on_both_sides_and_prompts():
    assert make_auto_mask(None, (), ()) is None
    with pytest.raises(TokenMapError, match="connect Prompt-Pair"):
        make_auto_mask(None, ("cat",), ("dog",))
    with pytest.raises(TokenMapError, match="one of the target prompt"):
        make_auto_mask(PAIR, ("cat",), ())
    with pytest.raises(TokenMapError, match="'zebra'"):
        make_auto_mask(PAIR, ("zebra",), ("dog",))
    with pytest.raises(PlanError, match="masks and words"):
        MasaCtrl(mask_source=torch.ones(1, 8, 8), auto=AutoMask(SOURCE, TARGET, ("cat",), ("dog",)))


def test_automatic_masks_come_from_this_steps_maps_only():
    auto = AutoMask(SOURCE, TARGET, ("cat",), ("dog",))
    control = MasaCtrl(4, 10, auto=auto).prepare(facts())
    site = next(s for s in SD15 if s.kind == "self" and s.order == 10)
    maps = torch.linspace(2, 3, 256)[None, :, None]
    control.observe(5, SD15[0], maps, 1 - maps)
    keys = control.key_mask(5, site)
    assert keys.source.shape == (1, 1024)
    assert float(keys.source.float().mean()) == pytest.approx(0.9, abs=0.01)  # 0.1 to 1
    assert bool(keys.source[0, -1]) and not bool(keys.target[0, -1])
    assert control.key_mask(6, site) is None


def test_automatic_masks_of_the_last_step_can_be_looked_at():
    auto = AutoMask(SOURCE, TARGET, ("cat",), ("dog",), 0.5)
    run = EditRun(facts(images=2), masactrl_controls(auto=auto))
    assert all(bool((mask == 1).all()) for mask in run.foregrounds())  # nothing was read yet
    maps = torch.zeros(2, 256, 1)
    maps[0, :64], maps[1, 64:128] = 1, 3
    run.controls[0].observe(48, SD15[0], maps.flip(0), maps.flip(0))
    run.controls[0].observe(49, SD15[0], maps, 1 - maps)
    run.controls[0].observe(49, SD15[1], maps, 1 - maps)
    source, target = run.foregrounds()
    assert source.shape == target.shape == (2, 64, 64)
    assert torch.equal(source[0], rows_mask(0, 16)) and torch.equal(source[1], rows_mask(16, 32))
    assert torch.equal(target, 1 - source)


def test_painted_masks_can_be_looked_at_too():
    painted = torch.zeros(1, 128, 128)
    painted[:, :32] = 1
    run = EditRun(facts(images=2), masactrl_controls(mask_source=painted))
    for mask in run.foregrounds():
        assert torch.equal(mask, rows_mask(0, 16).expand(2, -1, -1))
    for plain in (masactrl_controls(), ()):
        assert all(torch.equal(m, torch.ones(1, 64, 64)) for m in EditRun(facts(), plain)
                   .foregrounds())


def masactrl_controls(**options):
    """Return MasaCtrl's prepared controls, for two images if it has masks."""
    images = 2 if options else 1
    return EditPlan((MasaCtrl(4, 10, **options),)).prepare(facts(images=images))


def rows_mask(first, last):
    mask = torch.zeros(64, 64)
    mask[first:last] = 1
    return mask


def test_plug_and_play_takes_the_published_layers_of_stable_diffusion():
    control = PlugAndPlay().prepare(facts())
    assert sorted({site.index for site in control.sites}) == list(range(4, 12))
    assert control.residuals(39) == {ResidualBlock("output", 4)} and not control.residuals(40)
    site = next(iter(control.sites))
    assert control.self_rule(24, site, "cond") and control.self_rule(25, site, "cond") is None


def test_plug_and_play_serves_both_halves_from_one_source_row():
    run = EditRun(facts(), EditPlan((PlugAndPlay(),)).prepare(facts()))
    assert run.source_roles(0) == run.source_roles(30) == {SOURCE_COND}
    assert run.source_roles(45) == set()


def test_plug_and_play_refuses_empty_windows_and_flat_decoders():
    with pytest.raises(PlanError, match="would do nothing"):
        PlugAndPlay(0.0, 0.0).prepare(facts())
    with pytest.raises(BlockSelectionError, match="at least two blocks"):
        PlugAndPlay().prepare(facts(sites=TINY))


def test_controllers_for_different_layers_compose_in_any_order():
    pair = (PromptToPrompt(PAIR, self_replace=(0, 0)), MasaCtrl(4, 10))
    for controllers in (pair, pair[::-1]):
        run = EditRun(facts(), EditPlan(controllers).prepare(facts()))
        assert run.source_roles(0) == {SOURCE_COND}
        assert run.source_roles(10) == {SOURCE_COND, SOURCE_UNCOND}


@pytest.mark.parametrize("controllers", [
    (PromptToPrompt(PAIR), MasaCtrl(4, 10)),
    (MasaCtrl(4, 10), PlugAndPlay()),
    (PromptToPrompt(PAIR), PromptToPrompt(PAIR)),
    (
        MasaCtrl(4, 10, mask_source=torch.ones(1, 8, 8)),
        MasaCtrl(4, 10, mask_source=torch.eye(8)[None]),
    ),
])
def test_contradictions_are_refused_with_both_names(controllers):
    names = ".*".join(controller.name for controller in controllers)
    with pytest.raises(PlanError, match=names):
        EditPlan(controllers).prepare(facts())


def test_controllers_that_ask_the_same_thing_do_not_contradict():
    EditPlan((MasaCtrl(4, 10), MasaCtrl(6, 12))).prepare(facts())
    EditPlan((PromptToPrompt(PAIR), PlugAndPlay())).prepare(facts())


def test_frozen_values_survive_the_hosts_deep_copies_as_themselves():
    auto = AutoMask(SOURCE, TARGET, ("cat",), ("dog",))
    for value in (MasaCtrl(mask_source=torch.ones(1, 8, 8)), auto):
        assert copy.deepcopy(value) is value
    assert copy.deepcopy(PlugAndPlay()) == PlugAndPlay()
