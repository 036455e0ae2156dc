"""Unified attention control: published windows, when the layout branch walks, refusals."""

import pytest
from helpers_host import words_prompt
from retrace.attention.layout_blend import LayoutBlend, make_layout_blend
from retrace.attention.plan import EditPlan, RunFacts
from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt
from retrace.attention.rules import SelfRule
from retrace.attention.sites import Site
from retrace.attention.unified import UnifiedControl
from retrace.diffusion.errors import PlanError, TokenMapError

SITES = (
    Site("self", "input", 1, 0, 0, 1), Site("cross", "input", 1, 0, 0, 1),
    Site("self", "input", 2, 0, 1, 4), Site("cross", "input", 2, 0, 1, 4),
)  # fmt: skip
PAIR = PromptPair(words_prompt("a cat on a bench"), words_prompt("a dog on a red bench"))


def facts(steps=12, start=0, sites=SITES):
    return RunFacts(steps, start, 16, 16, 1, sites)


def prepared(blend=None, run=None, **options):
    return UnifiedControl(PAIR, blend=blend, **options).prepare(run or facts())


def test_windows_are_the_published_ones():
    """The benchmark, 12 steps: 8 of structure, 8 refined; the app, 15 steps: 4 and 10."""
    asked = UnifiedControl(PAIR)
    assert asked.windows(12) == (range(8), range(8))
    assert UnifiedControl(PAIR, self_replace=0.3).windows(15) == (range(10), range(4))
    # at most for cross, below for self: 0.5 of 4 steps
    assert UnifiedControl(PAIR, cross_replace=0.5, self_replace=0.5).windows(4) == (
        range(2), range(1)
    )
    assert UnifiedControl(PAIR, cross_replace=0, self_replace=1).windows(4) == (range(0), range(3))


def test_the_structure_is_the_sources_in_both_halves_of_every_layer():
    control = prepared()
    for site in SITES[::2]:
        for half in ("cond", "uncond"):
            assert control.self_rule(7, site, half) == SelfRule("source", "source", "target")
            assert control.self_rule(8, site, half) is None


def test_the_layout_branch_walks_only_where_it_differs_and_is_read():
    assert not prepared().layout_steps()  # the benchmark's windows end together
    assert prepared(self_replace=0.3).layout_steps() == range(3, 8)
    assert not prepared(self_replace=0.3, cross_from="source").layout_steps()
    assert prepared(LayoutBlend(edit=("dog",))).layout_steps() == range(8, 12)
    assert not prepared(LayoutBlend(keep=("bench",))).layout_steps()
    assert prepared(self_replace=0.3, run=facts(start=5)).layout_steps() == range(5, 8)


def test_cross_attention_is_refined_from_whoever_was_asked_for():
    branches = [
        [rule and rule.branch for rule in (control.cross_rule(k, SITES[1]) for k in (0, 5, 9))]
        for control in (prepared(self_replace=0.3),
                        prepared(self_replace=0.3, cross_from="source"))
    ]
    assert branches == [["source", "layout", None], ["source", "source", None]]


def test_a_second_editor_of_the_same_layers_is_refused():
    plan = EditPlan((UnifiedControl(PAIR), PromptToPrompt(PAIR)))
    with pytest.raises(PlanError, match="UAC-Controller and P2P-Controller both want"):
        plan.prepare(facts())


def test_two_layout_branches_and_recorded_attention_are_refused():
    one = UnifiedControl(PAIR, self_replace=0, cross_replace=0.5)
    with pytest.raises(PlanError, match="both want a layout branch"):
        EditPlan((one, one)).prepare(facts())
    with pytest.raises(PlanError, match="recorded attention"):
        EditPlan((one,), store=object()).prepare(facts())


@pytest.mark.parametrize(
    "options", [{"cross_replace": -0.1}, {"self_replace": 1.1}, {"cross_from": "target"},
                {"cross_replace": float("nan")}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PlanError):
        UnifiedControl(PAIR, **options)


def test_an_edit_that_would_do_nothing_is_refused():
    with pytest.raises(PlanError, match="would do nothing"):
        prepared(cross_replace=0.0, self_replace=0.0)
    with pytest.raises(PlanError, match="would do nothing"):
        prepared(run=facts(start=9))


def test_words_that_are_not_in_the_target_are_refused_at_once():
    with pytest.raises(TokenMapError, match="cat"):
        UnifiedControl(PAIR, blend=LayoutBlend(edit=("cat",)))
    with pytest.raises(PlanError, match="edit_threshold"):
        LayoutBlend(edit=("dog",), edit_threshold=1.0)
    assert make_layout_blend((), (), 0.5, 0.5) is None


def test_a_blend_needs_cross_attention():
    with pytest.raises(PlanError, match="lacks"):
        prepared(LayoutBlend(keep=("bench",)), facts(sites=SITES[::2]))
