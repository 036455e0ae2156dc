"""LEDITS++'s masks by their definition, and where guidance is dropped."""

import pytest
import torch
from retrace.attention.plan import RunFacts
from retrace.attention.sites import Site
from retrace.attention.sparse_guidance import SparseGuidance
from retrace.attention.tokens import Token, TokenizedPrompt
from retrace.diffusion.errors import PlanError
from retrace.diffusion.sparse_guidance import above_quantile, attention_mask, noise_mask

PROMPT = TokenizedPrompt(
    "red hat", (Token(0), Token(1, 0, 3), Token(2, 4, 7), Token(3), Token(3)), 4
)
SITE = Site("cross", "input", 4, 0, 0, 4)
FACTS = RunFacts(10, 0, 32, 32, 1, (SITE,))


def halves(seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = (torch.randn(batch, 4, 32, 32, generator=generator) for _ in range(2))
    return {"target": (cond, uncond)}


@pytest.mark.parametrize("quantile", [0.25, 0.75, 0.9])
def test_a_mask_keeps_the_fraction_above_its_quantile(quantile):
    values = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = above_quantile(values, quantile).mean((1, 2, 3))
    assert float((kept - (1 - quantile)).abs().max()) < 1e-3


def test_the_noise_mask_is_shared_by_the_channels():
    delta = torch.zeros(1, 4, 8, 8)
    delta[0, 0, 0, 0], delta[0, 1, 0, 0], delta[0, 2, 0, 1] = 1, -3, 2
    assert float(noise_mask(delta, 0.99)[0, 0, 0, 0]) == 1
    assert float(noise_mask(delta, 0.99).sum()) == 1


def test_the_attention_mask_is_a_smoothed_threshold_enlarged():
    """Textbook: reflected border, weights exp(-(d / 2s)^2) with s = 0.5, quantile, nearest."""
    maps = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="reflect")[0, 0]
    smooth, total = torch.zeros(8, 8), 0.0
    for i in range(3):
        for j in range(3):
            weight = float(torch.tensor(-float((i - 1) ** 2 + (j - 1) ** 2)).exp())
            smooth, total = smooth + weight * padded[i : i + 8, j : j + 8], total + weight
    smooth = smooth / total
    expected = (smooth >= torch.quantile(smooth, 0.75)).float().repeat_interleave(4, 0)
    mask = attention_mask(maps, 0.75, (32, 32))[0, 0]
    assert torch.equal(mask, expected.repeat_interleave(4, 1))


def test_guidance_is_dropped_outside_the_noise_mask():
    control = SparseGuidance(masks="noise").prepare(FACTS)
    given = halves()
    cond, uncond = control.guidance(0, torch.tensor(1.0), given)["target"]
    mask = noise_mask(given["target"][0] - given["target"][1], 0.75).bool().expand_as(cond)
    assert torch.allclose(cond[mask], given["target"][0][mask], atol=1e-6)
    assert torch.equal(cond[~mask], uncond[~mask])
    assert torch.equal(control.blend_mask()[0], mask[0, 0].float())


@pytest.mark.parametrize("masks", ["attention", "intersect"])
def test_the_words_maps_say_where_guidance_acts(masks):
    control = SparseGuidance(PROMPT, masks, 0.75).prepare(FACTS)
    probe = control.probe(0, SITE)
    assert probe.source is None and probe.target[:, 0].tolist() == [0, 1, 1, 0, 0]
    left = torch.zeros(1, 8, 8)
    left[:, :, :2] = 1
    control.observe(0, SITE, None, left.flatten(1)[..., None])
    given = halves()
    control.guidance(0, torch.tensor(1.0), given)
    mask = control.blend_mask()[0]
    assert float(mask[:, 12:].sum()) == 0
    if masks == "intersect":
        strong = noise_mask(given["target"][0] - given["target"][1], 0.75)[0, 0]
        assert bool((mask <= strong).all()) and 0 < float(mask.sum())


def test_maps_of_one_step_do_not_reach_the_next():
    control = SparseGuidance(PROMPT, "attention").prepare(FACTS)
    control.observe(0, SITE, None, torch.rand(1, 64, 1))
    control.guidance(0, torch.tensor(1.0), halves())
    given = halves(1)
    changed = control.guidance(1, torch.tensor(0.5), given)["target"]
    assert torch.allclose(changed[0], given["target"][0], atol=1e-6)


def test_steps_before_the_start_are_left_alone():
    control = SparseGuidance(masks="noise", start=0.3).prepare(FACTS)
    given = halves()
    assert control.guidance(2, torch.tensor(1.0), given) is given
    assert control.guidance(3, torch.tensor(1.0), given) is not given


def test_a_source_is_never_masked():
    control = SparseGuidance(masks="noise").prepare(FACTS)
    source = (torch.ones(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))
    changed = control.guidance(0, torch.tensor(1.0), {**halves(), "source": source})
    assert changed["source"] is source


def test_cfg_one_is_refused():
    control = SparseGuidance(masks="noise").prepare(FACTS)
    with pytest.raises(PlanError, match="cfg is 1"):
        control.guidance(0, torch.tensor(1.0), {"target": (torch.ones(1, 4, 8, 8), None)})


@pytest.mark.parametrize("options", [{"masks": "all"}, {"masks": "noise", "quantile": 0.0},
                                     {"masks": "noise", "start": 1.0}, {"masks": "attention"},
                                     {"prompt": TokenizedPrompt("", (Token(0),), 1)}])
def test_what_would_do_nothing_is_refused(options):
    with pytest.raises(PlanError):
        SparseGuidance(**options)


def test_a_model_without_cross_attention_is_refused():
    with pytest.raises(PlanError, match="cross-attention"):
        SparseGuidance(PROMPT).prepare(RunFacts(10, 0, 32, 32, 1, ()))
