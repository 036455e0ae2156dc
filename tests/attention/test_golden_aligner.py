"""Numbers of the papers' own code: token maps, gates, equalisers, controllers and LocalBlend."""

import ast

import pytest
import torch
from retrace.attention.alignment import make_token_map
from retrace.attention.kernels import edit_values, self_rows, take_rows
from retrace.attention.local_blend import LocalBlend
from retrace.attention.plan import RunFacts
from retrace.attention.probes import probe_maps
from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt, cross_rule, equalizer
from retrace.attention.rows import (
    SOURCE_COND,
    SOURCE_UNCOND,
    TARGET_COND,
    TARGET_UNCOND,
    RowLayout,
)
from retrace.attention.rules import Probe
from retrace.attention.sites import Site
from retrace.attention.tokens import Token, TokenizedPrompt
from retrace.attention.windows import token_gates, window_steps
from retrace.diffusion.errors import TokenMapError

PAIRS = range(15)


def tokenized(text: str, ids: list[int], word_inds: dict[str, list[int]]) -> TokenizedPrompt:
    """Return a prompt as the golden file describes it: ids, and the positions of each word."""
    words, at = text.split(" "), 0
    tokens = [Token(id_) for id_ in ids] + [Token(ids[-1])] * (77 - len(ids))
    taken = dict.fromkeys(word_inds, 0)
    for word in words:
        share = len(word_inds[word]) // words.count(word)
        for position in word_inds[word][taken[word] : taken[word] + share]:
            tokens[position] = Token(ids[position], at, at + len(word.encode()))
        taken[word] += share
        at += len(word.encode()) + 1
    return TokenizedPrompt(text, tuple(tokens), len(ids))


@pytest.fixture(scope="module")
def aligner(golden):
    return golden("aligner/aligner")


@pytest.fixture(scope="module")
def prompts(aligner):
    """All pairs of prompts, source and target."""
    return [
        (
            tokenized(pair["src"], pair["src_ids"], pair["word_inds_src"]),
            tokenized(pair["tgt"], pair["tgt_ids"], pair["word_inds_tgt"]),
        )
        for pair in aligner[1]["pairs"]
    ]


@pytest.mark.parametrize("number", PAIRS)
def test_published_refinement_map_is_the_aligners(number, aligner, prompts):
    tensors, _ = aligner
    token_map = make_token_map(*prompts[number], "refine", published=True)
    alphas = tensors[f"{number:02}.refine_alphas"][0]
    mapper = tensors[f"{number:02}.refine_mapper"][0].long()
    weights = torch.nn.functional.one_hot(mapper % 77, 77).T * alphas
    assert torch.equal(token_map.mapped, alphas)
    assert torch.equal(token_map.weights * token_map.mapped, weights.float())


@pytest.mark.parametrize("number", PAIRS)
def test_published_replacement_map_is_the_aligners(number, aligner, prompts):
    tensors, facts = aligner
    if "replace_error" in facts["pairs"][number]:
        with pytest.raises(TokenMapError):
            make_token_map(*prompts[number], "replace", published=True)
        return
    token_map = make_token_map(*prompts[number], "replace", published=True)
    assert torch.equal(token_map.weights, tensors[f"{number:02}.replace_mapper"][0])


def test_gates_are_the_published_schedule(aligner, prompts):
    tensors, facts = aligner
    target = prompts[0][1]
    for name, case in facts["alphas"].items():
        windows = {
            word: value if isinstance(value, tuple) else (0.0, value)
            for word, value in ast.literal_eval(case["cross_replace_steps"]).items()
        }
        default = windows.pop("default_", (0.0, 1.0))
        steps = case["num_steps"]
        gates = token_gates(target, steps, default, tuple(windows.items()))
        assert torch.equal(gates, tensors[f"cross_alpha.{name}"][:steps, 0, 0, 0]), name


def test_self_windows_are_the_published_bounds(aligner):
    for case, (start, end) in aligner[1]["num_self_replace"].items():
        steps, fraction = case.split("|")
        assert window_steps((0.0, float(fraction)), int(steps)) == range(start, end)


def test_equalizers_are_the_published_ones(aligner, prompts):
    tensors, facts = aligner
    target = prompts[0][1]
    for name in ("dog2", "two"):
        words, values = (ast.literal_eval(text) for text in facts["equalizers"][name][1:])
        factors = tuple(zip(words, values, strict=True))
        assert torch.equal(equalizer(target, factors)[None], tensors[f"equalizer.{name}"])


UNITS = [
    ("replace", "replace"),
    ("refine", "refine"),
    ("reweight_alone", "replace"),  # alone it reweights the source's map, as replace does here
    ("reweight_replace", "replace"),
]


def unit_rule(name, mode, prompts, step):
    """Return the rule of one of the golden file's controllers at a step of ten."""
    pair = prompts[1] if name == "refine" else prompts[0]
    token_map = make_token_map(*pair, mode, published=True)
    gates = token_gates(pair[1], 10, (0.0, 0.4))
    factors = (("dog", 2.0),) if name.startswith("reweight") else ()
    gate = gates[step]
    return cross_rule(token_map, gate, equalizer(pair[1], factors)) if gate.any() else None


@pytest.mark.parametrize("step", [0, 3, 4, 5, 6, 9])
@pytest.mark.parametrize(("name", "mode"), UNITS)
def test_value_side_rule_gives_the_edited_map_times_the_values(name, mode, step, aligner, prompts):
    tensors, _ = aligner
    source, target = tensors["unit.in_cross"][4:].view(2, 2, 64, 77)  # cond half, two heads
    expected = tensors[f"unit.{name}.step{step}.cross"][4:].view(2, 2, 64, 77)[1]
    values = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(step))
    rule = unit_rule(name, mode, prompts, step)
    if rule is None:
        ours = target @ values
    else:
        mapped, weighted = edit_values(rule, values, 77)
        parts = []
        if mapped is not None:
            parts.append(source @ mapped)
        if weighted is not None:
            parts.append(target @ weighted)
        ours = sum(parts)
    torch.testing.assert_close(ours, expected @ values, rtol=1e-5, atol=1e-5)


ROLES = (SOURCE_UNCOND, TARGET_UNCOND, SOURCE_COND, TARGET_COND)
"""Rows of the golden maps, two heads each."""


def unit_control(name, mode, prompts, tokens):
    """Return one of the golden file's controllers for a layer of so many tokens, and the layer."""
    source, target = prompts[1] if name == "refine" else prompts[0]
    controller = PromptToPrompt(
        PromptPair(source, target, published=True), mode, (0.0, 0.4), (0.0, 0.6),
        reweight=(("dog", 2.0),) if name.startswith("reweight") else (), self_tokens=32 * 32,
    )
    site = Site("self", "output", 0, 0, 0, 1)
    height, width = (8, 8) if tokens == 64 else (22, 50)
    return controller.prepare(RunFacts(10, 0, height, width, 1, (site,))), site


def fed_maps(control, site, step, maps):
    """Return every row's self-attention map, "rows heads queries keys", as the rules feed it."""
    rules = {
        half: rule
        for half in ("cond", "uncond")
        if (rule := control.self_rule(step, site, half)) is not None
    }
    layout = RowLayout(ROLES, 1)
    queries, keys, values = (self_rows(layout, part, rules) for part in ("query", "key", "value"))
    assert queries == keys and values is None  # a map belongs to one row; values stay
    return take_rows(maps.unflatten(0, (4, 2)), queries)


@pytest.mark.parametrize("step", [0, 3, 4, 5, 6, 9])
@pytest.mark.parametrize(("name", "mode"), UNITS)
def test_self_attention_is_fed_the_published_maps(name, mode, step, aligner, prompts):
    tensors, _ = aligner
    control, site = unit_control(name, mode, prompts, 64)
    expected = tensors[f"unit.{name}.step{step}.self"].unflatten(0, (4, 2))
    assert torch.equal(fed_maps(control, site, step, tensors["unit.in_self"]), expected)
    assert torch.equal(expected[3], expected[2]) == (step < 6)  # the window is seen to end


@pytest.mark.parametrize(("name", "mode"), UNITS)
def test_self_attention_of_too_many_tokens_is_left_alone_as_published(name, mode, aligner, prompts):
    tensors, _ = aligner
    control, site = unit_control(name, mode, prompts, 1100)
    expected = tensors[f"unit.{name}.step0.self_big"].unflatten(0, (4, 2))
    assert torch.equal(fed_maps(control, site, 0, tensors["unit.in_self_big"]), expected)


@pytest.mark.parametrize(("name", "mode"), UNITS)
def test_maps_add_up_over_steps_after_their_edit_as_published(name, mode, aligner, prompts):
    """The published store: the conditional half, two steps, cross- and self-attention."""
    tensors, _ = aligner
    control, site = unit_control(name, mode, prompts, 64)
    maps = tensors["unit.in_cross"].unflatten(0, (4, 2))  # [rows heads queries tokens]

    def attention(q, k, v):
        """Multiply values by maps that ride in the queries."""
        v = v.unflatten(2, (2, -1)).transpose(1, 2)
        return (q.unflatten(2, (2, 77)).transpose(1, 2) @ v).transpose(1, 2).flatten(2)

    every = Probe(torch.eye(77), torch.eye(77))
    queries, keys = maps.transpose(1, 2).flatten(2), torch.zeros(4, 77, 2 * 32)
    found, fed = [], []
    for step in (0, 1):
        rule = unit_rule(name, mode, prompts, step)
        layout = RowLayout(ROLES, 1)
        seen = probe_maps(queries, keys, layout, rule, every, attention, heads=2)
        found.append(torch.cat(seen))
        fed.append(fed_maps(control, site, step, tensors["unit.in_self"])[2:])
    cross = tensors[f"unit.{name}.store_after2.down_cross"].unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(sum(found), cross, rtol=1e-5, atol=1e-6)
    own = tensors[f"unit.{name}.store_after2.up_self"].unflatten(0, (2, 2))
    assert torch.equal(sum(fed), own)


@pytest.mark.parametrize("name", ["default", "th55", "sub"])
def test_local_blend_gives_the_published_mask_and_latent(name, aligner, prompts):
    tensors, facts = aligner
    kwargs = ast.literal_eval(facts["lb"][name]["kw"])
    region, subtract = kwargs.get("th", (0.3, 0.3))
    words = tuple(word for (word,) in kwargs.get("substruct_words", ())[:1])
    blend = LocalBlend(("cat",), ("dog",), words, threshold=region, subtract_threshold=subtract)
    addresses = [("input", 4), ("input", 5), ("output", 3), ("output", 4), ("output", 5)]
    sites = tuple(Site("cross", stage, index, 0, index, 2) for stage, index in addresses)
    run = RunFacts(steps=10, start_step=0, height=32, width=32, images=1, sites=sites)
    prepared = blend.prepare(*prompts[0], run)
    names = ["down_cross.2", "down_cross.3", "up_cross.0", "up_cross.1", "up_cross.2"]
    for map_name in names:
        source, target = tensors[f"lb.{map_name}"].view(2, 2, 256, 77)
        prepared.observe(
            (source @ prepared.probe.source).mean(0)[None],
            (target @ prepared.probe.target).mean(0)[None],
        )
    source, target = tensors["lb.x_t"].split(1)
    assert torch.equal(prepared.apply(facts["lb"][name]["start_blend"] - 1, source, target), target)
    blended = prepared.apply(facts["lb"][name]["start_blend"], source, target)
    torch.testing.assert_close(blended, tensors[f"lb.out.{name}"][1:], rtol=1e-6, atol=1e-6)
    if not words:
        assert torch.equal(prepared.mask, tensors[f"lb.mask.{name}"][1:, 0].float())
