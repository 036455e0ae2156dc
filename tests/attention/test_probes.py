"""Columns of edited maps read without the map."""

import pytest
import torch
import torch.nn.functional as F
from retrace.attention.kernels import edited_cross_attention
from retrace.attention.probes import probe_maps, read_columns
from retrace.attention.rows import SOURCE_COND, TARGET_COND, TARGET_UNCOND, RowLayout
from retrace.attention.rules import CrossRule, Probe

HEADS, WIDTH, PIXELS, IMAGES = 2, 8, 30, 2
LAYOUT = RowLayout((TARGET_UNCOND, SOURCE_COND, TARGET_COND), IMAGES)


def fused(q, k, v):
    q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def maps(q, k):
    """Return materialised maps "rows heads queries keys"."""
    q, k = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(2, 3) / WIDTH**0.5).softmax(-1)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(LAYOUT.rows, PIXELS, HEADS * WIDTH, generator=generator)
    k = torch.randn(LAYOUT.rows, 12, HEADS * WIDTH, generator=generator)
    return q, k, generator


def edited(rule, q, k):
    """Return the source's map and the target's edited one."""
    source, target = (maps(q, k)[LAYOUT.slice(role)] for role in (SOURCE_COND, TARGET_COND))
    if rule is None:
        return source, target
    out = torch.zeros_like(target)
    if rule.from_source is not None:
        out = out + source @ rule.from_source
    if rule.from_target is not None:
        out = out + target * rule.from_target
    return source, out


@pytest.mark.parametrize("parts", ["none", "both", "source", "target"])
def test_a_probe_reads_the_columns_of_the_edited_map(parts, inputs):
    q, k, generator = inputs
    matrix, weights = torch.rand(12, 12, generator=generator), torch.rand(12, generator=generator)
    rule = None if parts == "none" else CrossRule(
        matrix if parts in ("both", "source") else None,
        weights if parts in ("both", "target") else None,
    )
    probe = Probe(torch.eye(12)[:, :2], torch.rand(12, 3, generator=generator))
    source, target = probe_maps(q, k, LAYOUT, rule, probe, fused, HEADS)
    expected = edited(rule, q, k)
    torch.testing.assert_close(source, (expected[0] @ probe.source).mean(1))
    torch.testing.assert_close(target, (expected[1] @ probe.target).mean(1))


def test_a_branch_that_is_not_asked_for_is_not_evaluated(inputs):
    q, k, _ = inputs
    calls = []

    def counting(q, k, v):
        calls.append(len(q))
        return fused(q, k, v)

    source, target = probe_maps(q, k, LAYOUT, None, Probe(None, torch.eye(12)), counting, HEADS)
    assert source is None and target.shape == (IMAGES, PIXELS, 12)
    assert calls == [IMAGES, IMAGES]  # twelve columns in heads of eight channels


def test_a_map_that_an_edit_wipes_out_reads_as_nothing(inputs):
    q, k, _ = inputs
    probe = Probe(None, torch.eye(12)[:, :1])
    assert probe_maps(q, k, LAYOUT, CrossRule(None, None), probe, fused, HEADS) == (None, None)


def test_columns_of_a_repeated_context_are_those_of_the_prompt(inputs):
    """The host pads a batch's shorter context by repetition; the map's columns then add up."""
    q, k, generator = inputs
    rule = CrossRule(torch.rand(12, 12, generator=generator), torch.rand(12, generator=generator))
    probe = Probe(torch.eye(12)[:, :2], torch.eye(12)[:, 2:4])
    once = probe_maps(q, k, LAYOUT, rule, probe, fused, HEADS)
    twice = probe_maps(q, k.repeat(1, 2, 1), LAYOUT, rule, probe, fused, HEADS)
    torch.testing.assert_close(once, twice)


def test_the_sum_of_all_columns_is_one(inputs):
    q, k, _ = inputs
    columns = torch.ones(LAYOUT.rows, 12, 1)
    read = read_columns(fused, q, k, columns, HEADS)
    torch.testing.assert_close(read, torch.ones_like(read))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_edited_attention_is_as_exact_as_a_low_precision_map(dtype, inputs):
    q, k, generator = inputs
    v = torch.randn(*k.shape, generator=generator)
    rule = CrossRule(torch.rand(12, 12, generator=generator), torch.rand(12, generator=generator))

    def materialised(q, k, v):
        source, target = (maps(q, k)[LAYOUT.slice(role)] for role in (SOURCE_COND, TARGET_COND))
        out = source @ rule.from_source.to(q) + target * rule.from_target.to(q)
        values = v[LAYOUT.slice(TARGET_COND)].unflatten(2, (HEADS, -1)).transpose(1, 2)
        return (out @ values).transpose(1, 2).flatten(2)

    exact = materialised(q.double(), k.double(), v.double())
    low = tuple(x.to(dtype) for x in (q, k, v))
    ours = edited_cross_attention(*low, LAYOUT, rule, fused)[LAYOUT.slice(TARGET_COND)]
    reference = (materialised(*low).double() - exact).abs().max()
    assert (ours.double() - exact).abs().max() <= 2 * reference
