"""PatchMerge on PixArt of every variant."""

import pytest
import torch
from helpers_host import words_prompt
from helpers_pixart import SIZE, VARIANTS, make_pixart
from helpers_textbook import relative

pytestmark = pytest.mark.host

TOKENS = (SIZE[0] // 2) * (SIZE[1] // 2)


@pytest.fixture(scope="module", params=list(VARIANTS))
def model(request, comfy):
    return make_pixart(request.param)


def text(seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 12, 24, generator=generator), {}]]


def merging(model, ratio=0.5, **asked):
    from retrace.attention.patch_merge import PatchMerge
    from retrace.host.merging import with_patch_merge

    return with_patch_merge(model, PatchMerge(ratio=ratio, **asked))


def inverted(model):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    samples = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(7))
    trajectory = invert(model, text(1), {"samples": samples}, steps=2)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=False))


def run(model, trajectory, *controllers, positive=None):
    from retrace.host.editing import run_edit, with_controller

    for controller in controllers:
        model = with_controller(model, controller)
    return run_edit(model, trajectory, positive or text(2), text(3))


def p2p():
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    prompt = words_prompt("a cat on a mat", length=12)
    return PromptToPrompt(PromptPair(prompt, prompt), self_replace=(0.0, 1.0))


def test_a_whole_edit_merges_every_block_and_leaves_nothing(model):
    fast = merging(model, 0.8)
    trajectory = inverted(fast)
    merged = f"4 layers, {TOKENS} to {TOKENS - int(0.8 * TOKENS)} tokens"
    assert dict(trajectory.report)["patch_merge"] == merged
    result = run(fast, trajectory, p2p(), positive=text(1))
    assert result.report["patch_merge"] == merged
    assert relative(result.edited, result.source) <= 1e-5  # one prompt on both branches
    assert not torch.equal(trajectory.latents, inverted(model).latents)
    assert torch.equal(inverted(merging(model, 0.0)).latents, inverted(model).latents)
    network = model.model.diffusion_model
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_merging_before_and_behind_the_projection_is_the_same(model):
    fast, trajectory = merging(model), inverted(model)
    alone, hooked = (run(fast, trajectory, *c, positive=text(1)) for c in ([], [p2p()]))
    assert relative(hooked.source, alone.source) < 0.5  # other rows, so another mean to match by
    assert alone.edited.isfinite().all()
