"""Numbers of the papers' own code: DDIM inversion, Direct Inversion, Prompt-to-Prompt."""

import json

import pytest
import torch
from helpers_host import TokenizerOnly, conditioning, rms

pytestmark = pytest.mark.host

SCALE = 0.18215  # SD1.5's latent format; the golden latents are in the model's internal scale


@pytest.fixture(scope="module")
def clip(comfy):
    return TokenizerOnly()


@pytest.fixture(scope="module")
def embeddings(golden_dir, golden):
    texts = json.loads((golden_dir / "prompt_embeddings.json").read_text())
    tensors, _ = golden("prompt_embeddings")
    return {text: conditioning(tensors["embeddings"][i : i + 1]) for i, text in enumerate(texts)}


@pytest.fixture(scope="module")
def inverted(tiny3, golden, embeddings):
    """The golden inversion: 10 steps, source prompt, cfg 1."""
    from retrace.host.inversion import invert

    z0 = golden("inputs")[0]["z0_tiny3"]
    latent = {"samples": z0 / SCALE}
    return invert(tiny3, embeddings["a cat sitting on a bench"], latent, steps=10)[0]


def to_z(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return latents / (1 + sigma**2).sqrt()


def test_inversion_equals_the_published_one(inverted, golden):
    tensors, _ = golden("p2p/tiny3_10/directinversion+p2p__swap_replace")
    z = to_z(inverted.latents, inverted.sigmas[:, None, None, None, None])
    assert (z - tensors["z_inv"]).abs().max() <= 1e-4


EDITS = [
    ("directinversion+p2p__swap_replace", True, {}),
    ("directinversion+p2p__swap_replace_eq", True, {}),
    ("directinversion+p2p__refine", True, {}),
    ("directinversion+p2p__swap_replace_blend@th", True, {}),
    ("directinversion+p2p__refine_blend_eq@th", True, {}),
    ("ddim+p2p__refine_blend@sub", False, {}),
    ("ddim+p2p__swap_replace", False, {}),
    ("ddim+p2p__refine", False, {}),
    ("ablation_directinversion_04+p2p__swap_replace", True, {"scale": 0.4}),
    ("ablation_directinversion_interval_2+p2p__swap_replace", True, {"interval": 2}),
]


@pytest.mark.parametrize(("name", "pinned", "rule"), EDITS)
def test_edit_equals_the_published_one(name, pinned, rule, tiny3, golden, clip, embeddings,
                                       inverted):
    from retrace.attention.prompt_to_prompt import PromptToPrompt
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.tokens import pair_prompts

    tensors, facts = golden(f"p2p/tiny3_10/{name}")
    kwargs = facts["kwargs"]
    equalizer = kwargs.get("eq_params") or {"words": [], "values": []}
    controller = PromptToPrompt(
        pair_prompts(clip, kwargs["prompt_src"], kwargs["prompt_tar"], published=True),
        mode="replace" if kwargs.get("is_replace_controller") else "refine",
        cross_replace=(0.0, kwargs["cross_replace_steps"]),
        self_replace=(0.0, kwargs["self_replace_steps"]),
        reweight=tuple(zip(equalizer["words"], equalizer["values"], strict=True)),
        self_tokens=32 * 32,
        blend=golden_blend(kwargs.get("blend_word"), facts.get("localblend_overrides", {})),
    )
    trajectory = inverted.replace(source_rule=SourceRule(pinned=pinned, **rule))
    result = run_edit(
        with_controller(tiny3, controller),
        trajectory,
        embeddings[kwargs["prompt_tar"]],
        embeddings[""],
        cfg=kwargs["guidance_scale"],
    )
    final = tensors["edit_final"]
    assert rms(result.source * SCALE, final[:1]) <= 5e-4
    assert rms(result.edited * SCALE, final[1:]) <= 5e-4
    if controller.blend is not None:
        mask = golden_mask(tensors["lb_masks"], bool(controller.blend.subtract))
        assert torch.equal(result.mask[:, ::8, ::8], mask)


def golden_blend(words, overrides):
    """Return the LocalBlend of a golden case, or None."""
    from retrace.attention.local_blend import LocalBlend

    if words is None:
        return None
    region, subtract = overrides.get("th", (0.3, 0.3))
    return LocalBlend(
        source=tuple(words[0]),
        target=tuple(words[1]),
        subtract=tuple(dict.fromkeys(w for s in overrides.get("substruct_words", []) for w in s)),
        threshold=region,
        subtract_threshold=subtract,
    )


def golden_mask(masks, subtract):
    """Return the last step's mask of the target row, "images height width"."""
    if not subtract:
        return masks[-1, 1:, 0]
    return (masks[-2, 1:, 0] > 0).float() * (masks[-1, 1:, 0] == 0).float()
