"""Attention-Capture and Attention-Viewer as nodes: from a trajectory to pictures of words."""

import pytest
import torch
from helpers_host import SMALL_UNET, TokenizerOnly, conditioning, make_unet_model

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def scene(comfy):
    """A model, its trajectory, the prompts and the recorded attention."""
    from retrace.host.inversion import invert
    from retrace.host.tokens import pair_prompts
    from retrace.nodes.attention import AttentionCapture

    model = make_unet_model(SMALL_UNET)
    generator = torch.Generator().manual_seed(2)
    prompt = conditioning(torch.randn(1, 77, 64, generator=generator))
    samples = torch.randn(2, 4, 16, 16, generator=generator)
    trajectory = invert(model, prompt, {"samples": samples}, steps=4)[0]
    attention = AttentionCapture.execute(
        model, trajectory, "cross", "fp32", 64, "cpu", start=0.25
    ).args[0]
    pair = pair_prompts(TokenizerOnly(), "a cat on a bench", "a dog on a bench")
    return model, trajectory, pair, attention


def test_the_capture_node_records_what_its_inputs_say(scene):
    _, trajectory, _, attention = scene
    assert attention.spec.steps == (1, 2, 3)
    assert {site.kind for site, _ in attention.spec.sites} == {"cross"}
    assert attention.spec.images == trajectory.batch


def test_the_capture_node_announces_its_size_first(scene, monkeypatch):
    from retrace.diffusion.errors import PlanError
    from retrace.nodes import attention as node

    said = []
    monkeypatch.setattr(node, "announce", lambda _, text: said.append(text))
    with pytest.raises(PlanError, match="budget"):
        node.AttentionCapture.execute(scene[0], scene[1], "all", "fp32", 1, "cpu")
    assert len(said) == 1
    assert "MB" in said[0]


def test_the_viewer_draws_a_sheet_for_every_image(scene):
    from retrace.attention.heatmaps import heat_sheets
    from retrace.attention.maps import word_maps

    _, _, pair, attention = scene
    image = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    maps = word_maps(attention, pair.source, ["cat", "bench"])
    sheets = heat_sheets(image, ["cat", "bench"], maps, {"mask": torch.ones(1, 128, 128)})
    assert sheets.shape[0] == 2
    assert sheets.shape[2] > 4 * 256
    assert not torch.equal(sheets[0], sheets[1])


def test_the_viewer_node_shows_the_masks_it_is_given(scene):
    from retrace.nodes.attention import AttentionViewer

    _, _, pair, attention = scene
    image, mask = torch.rand(1, 128, 128, 3), torch.zeros(2, 128, 128)
    mask[:, :64] = 1
    masks = {"mask": mask, "foreground_source": mask, "foreground_target": mask[:1]}
    sheets = [
        AttentionViewer.execute(
            attention, pair, "cat", image, **{name: masks[name] for name in names}
        ).args[0]
        for names in ([], ["mask"], list(masks))
    ]
    none, one, three = (sheet.shape[2] for sheet in sheets)
    assert three - one == 2 * (one - none) > 0


def test_word_maps_follow_the_live_model(scene):
    """A map read from the store equals the softmax of the live layer's own projections."""
    from retrace.attention.maps import word_maps

    model, trajectory, pair, attention = scene
    site = next(site for site, _ in attention.spec.sites if site.stage == "middle")
    layer = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    seen = {}
    handles = [
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name, part in (("q", layer.to_q), ("k", layer.to_k))
    ]
    level = trajectory.steps - 3
    x = trajectory.latents[level]
    try:
        with torch.no_grad():
            model.model.apply_model(
                x, trajectory.sigmas[level].expand(2),
                c_crossattn=trajectory.source[0][0].expand(2, -1, -1),
            )
    finally:
        for handle in handles:
            handle.remove()
    q, k = (seen[name].unflatten(2, (layer.heads, -1)).transpose(1, 2) for name in "qk")
    probs = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    expected = probs[..., list(pair.source.span("cat"))].sum(-1).view(2, 8, 8)
    assert site.downsample == 2
    maps = word_maps(attention, pair.source, ["cat"], window=(0.75, 1.0), layers="middle")
    torch.testing.assert_close(maps[:, 0], expected, atol=1e-5, rtol=1e-4)
