"""DiT4Edit's unified control: what it asks of which layer at which step, and layers by depth."""

import pytest
from helpers_host import words_prompt
from retrace.attention.dit4edit import unified_control
from retrace.attention.masactrl import MUTUAL, MasaCtrl
from retrace.attention.plan import EditPlan, RunFacts, merge_cross_rules, merge_self_rules
from retrace.attention.prompt_to_prompt import SELF_REPLACE, PromptPair, PromptToPrompt
from retrace.attention.rules import FREE
from retrace.attention.sites import Site, is_transformer, sites_at_depth
from retrace.diffusion.errors import BlockSelectionError, PlanError

DEPTH, STEPS = 8, 10
SITES = tuple(
    Site(kind, "block", n, 0, n, 2) for n in range(DEPTH) for kind in ("self", "cross")
)
PAIR = PromptPair(words_prompt("a cat on a mat"), words_prompt("a dog on a mat"))


def facts(sites=SITES, size=(16, 16)):
    return RunFacts(STEPS, 0, *size, 1, sites)


def asked(controllers, half="cond"):
    """Return the self rule of every (step, layer), and where cross-attention is edited."""
    run = facts()
    controls = EditPlan(tuple(controllers)).prepare(run)  # refuses what contradicts itself
    own = {
        (step, site.order): merge_self_rules(controls, step, site, half)
        for step in range(STEPS) for site in SITES if site.kind == "self"
    }
    cross = {
        (step, site.order)
        for step in range(STEPS) for site in SITES
        if site.kind == "cross" and merge_cross_rules(controls, step, site) is not None
    }
    return own, cross


def test_structure_comes_before_the_switch_and_content_after_it_in_deep_layers():
    own, cross = asked(unified_control(
        PAIR, cross_replace=0.6, switch=0.3, cross_from=0.25, self_from=0.5
    ))  # fmt: skip
    for (step, layer), rule in own.items():
        expected = FREE if layer < 4 else SELF_REPLACE if step < 3 else MUTUAL
        assert rule == expected
    assert cross == {(step, layer) for step in range(6) for layer in range(2, 8)}


def test_content_is_looked_up_in_both_guidance_halves_and_structure_in_one():
    own, _ = asked(unified_control(PAIR, switch=0.3, self_from=0.0), half="uncond")
    assert {step for (step, _), rule in own.items() if rule == MUTUAL} == set(range(3, 10))
    assert all(rule == FREE for (step, _), rule in own.items() if step < 3)


@pytest.mark.parametrize("switch", [0.0, 0.05, 0.33, 0.99, 1.0])
def test_no_switch_lets_two_parts_want_one_layer(switch):
    own, _ = asked(unified_control(PAIR, switch=switch, self_from=0.0))
    steps = int(switch * STEPS)
    assert sum(rule == SELF_REPLACE for rule in own.values()) == steps * DEPTH
    assert sum(rule == MUTUAL for rule in own.values()) == (STEPS - steps) * DEPTH


def test_each_part_can_be_had_alone():
    structure = unified_control(PAIR, content=False)
    content = unified_control(PAIR, cross_replace=0.0, switch=0.2, structure=False)
    assert [type(c) for c in structure] == [PromptToPrompt]
    assert [type(c) for c in content] == [MasaCtrl]


@pytest.mark.parametrize("name", ["switch", "cross_from", "self_from", "cross_replace"])
def test_fractions_outside_of_one_are_refused(name):
    with pytest.raises(PlanError):
        unified_control(PAIR, **{name: 1.2})


def test_a_depth_without_layers_is_named():
    with pytest.raises(BlockSelectionError, match=r"0\.95 to 1 holds none of this model's 8 self"):
        EditPlan(unified_control(PAIR, self_from=0.95)).prepare(facts())


@pytest.mark.parametrize(
    ("depth", "orders"),
    [((0.0, 1.0), range(8)), ((0.5, 1.0), range(4, 8)), ((0.3, 0.7), range(2, 6))],
)
def test_depth_counts_layers_of_one_kind_in_call_order(depth, orders):
    chosen = sites_at_depth(SITES, "cross", depth)
    assert {site.kind for site in chosen} == {"cross"}
    assert sorted(site.order for site in chosen) == list(orders)


def test_a_transformer_is_known_by_its_blocks():
    assert is_transformer(SITES)
    assert not is_transformer((*SITES, Site("self", "input", 1, 0, 8, 1)))
    assert not is_transformer(())


@pytest.mark.parametrize("size", [(16, 16), (13, 17), (17, 12)])
def test_prompt_to_prompt_holds_the_half_size_layers_of_a_unet_at_any_size(size):
    sites = tuple(Site("self", "input", n, 0, n, 2**n) for n in range(3))
    run = facts(sites, size)
    prepared = PromptToPrompt(PAIR).prepare(run)
    assert {site.downsample for site in prepared.sites} == {2, 4}
