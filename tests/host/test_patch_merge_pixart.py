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


def forward(model, hooked=False, ratio=0.8):
    """One pass of the network with merging in its layers; hooked: behind the projections."""
    from retrace.attention.patch_merge import MergeCall, PatchMerge
    from retrace.attention.rows import SOURCE_COND, TARGET_COND, RowLayout
    from retrace.host.merging_pixart import merging_layers
    from retrace.host.pixart import pixart_sites

    network = model.model.diffusion_model
    sites = [site for site in pixart_sites(network) if site.kind == "self"]
    layout = RowLayout((SOURCE_COND, TARGET_COND), 1)
    call = MergeCall(dict.fromkeys(sites, PatchMerge(ratio)) if ratio else {}, layout, 1.0, *SIZE)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, *SIZE, generator=generator)
    context = torch.randn(2, 12, 24, generator=generator)
    lengths = []
    handles = [
        block.attn.qkv.register_forward_hook(lambda _, __, out: lengths.append(out.shape[1]))
        for block in network.blocks
        if hooked
    ]
    try:
        with torch.no_grad(), merging_layers(network, call):
            out = network(x, torch.full((2,), 400.0), context)
    finally:
        for handle in handles:
            handle.remove()
    assert len(call.merged) == (len(sites) if ratio else 0)
    return out, lengths


def test_merging_before_and_behind_the_projection_is_the_same(model):
    before, _ = forward(model)
    behind, projected = forward(model, hooked=True)
    assert projected == [TOKENS] * 4  # the hooks make every layer merge behind its projection
    assert relative(behind, before) < 1e-5
    whole, _ = forward(model, ratio=0.0)
    assert relative(before, whole) > 1e-3


def test_merging_in_one_model_leaves_another_alone(comfy):
    one, other = make_pixart(seed=1), make_pixart(seed=2)
    plain = inverted(other).latents
    merged = inverted(merging(one, 0.8)).latents
    assert torch.equal(inverted(other).latents, plain)
    assert torch.equal(inverted(merging(one, 0.8)).latents, merged)
    assert not torch.equal(inverted(one).latents, merged)
    clone = merging(other, 0.8)  # of the same live network
    assert not torch.equal(inverted(clone).latents, plain)
    assert torch.equal(inverted(other).latents, plain)


def test_blocks_that_are_not_there_are_named(comfy):
    from retrace.diffusion.errors import BlockSelectionError

    with pytest.raises(BlockSelectionError, match="numbers 0 to 3"):
        merging(make_pixart(), 0.5, layers="10-27")
