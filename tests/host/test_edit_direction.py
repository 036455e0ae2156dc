"""Edit directions from a real text encoder, against encoding sentence by sentence; their files."""

import pytest
import torch

pytestmark = pytest.mark.host

SOURCES = ["a red circle", "a photo of a large red circle on a blue background", "red"]
TARGETS = ["a green square", "a photo of a large green square on a blue background"]


@pytest.fixture(scope="module")
def demo(comfy):
    from retrace.demo.bundle import load_demo

    return load_demo()


WIDTH = 32
CLIP_CONFIG = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2,
               "intermediate_size": 48}  # fmt: skip
T5_CONFIG = {"d_model": WIDTH, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2}
SMALL = {"clip_l_model_config": CLIP_CONFIG, "clip_g_model_config": CLIP_CONFIG,
         "t5xxl_model_config": T5_CONFIG}  # fmt: skip
KINDS = ("SDXL", "SDXL refiner", "T5 padded", "T5 unpadded")


def make_clip(kind):
    """Return the host's own text encoders of a model family, small and with random weights."""
    from types import SimpleNamespace

    import comfy.sd
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import pixart_t5, sd3_clip

    class PaddedTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, **given):
            super().__init__(clip_name="t5xxl", tokenizer=sd3_clip.T5XXLTokenizer, **given)

    class RefinerTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, **given):
            super().__init__(clip_name="g", tokenizer=sdxl_clip.SDXLClipGTokenizer, **given)

    model, tokenizer = {
        "SDXL": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        "SDXL refiner": (sdxl_clip.SDXLRefinerClipModel, RefinerTokenizer),
        "T5 padded": (pixart_t5.pixart_te(), PaddedTokenizer),
        "T5 unpadded": (pixart_t5.pixart_te(), pixart_t5.PixArtTokenizer),
    }[kind]
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, model_options={**SMALL, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            if parameter.ndim:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * WIDTH**-0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return clip


@pytest.fixture(scope="module", params=KINDS)
def encoders(request, comfy):
    return request.param, make_clip(request.param)


def one_by_one(clip, sentences):
    encoded = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
               for text in sentences]
    return [torch.stack(parts).mean(0) for parts in zip(*encoded, strict=True)]


def test_batched_encoding_equals_sentence_by_sentence(demo):
    from retrace.host.edit_direction import make_direction

    direction = make_direction(demo.clip, SOURCES, TARGETS)
    expected = one_by_one(demo.clip, TARGETS)[0] - one_by_one(demo.clip, SOURCES)[0]
    assert torch.allclose(direction.tokens, expected, atol=1e-5)
    assert "3 sentences" in direction.note


def test_more_sentences_than_a_batch_are_all_counted(demo):
    from retrace.host.edit_direction import BATCH, make_direction

    many = [f"{n} red circles" for n in range(BATCH + 3)]
    direction = make_direction(demo.clip, many, TARGETS)
    expected = one_by_one(demo.clip, TARGETS)[0] - one_by_one(demo.clip, many)[0]
    assert torch.allclose(direction.tokens, expected, atol=1e-5)


def padded_mean(clip, sentences):
    """Encode one by one; return the means of tokens (padded with zeros) and of pooled vectors."""
    encoded = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
               for text in sentences]
    length = max(out.shape[1] for out, _ in encoded)
    pad = torch.nn.functional.pad
    tokens = torch.stack([pad(out, (0, 0, 0, length - out.shape[1])) for out, _ in encoded])
    pooled = [vector for _, vector in encoded]
    return tokens.mean(0), None if pooled[0] is None else torch.stack(pooled).mean(0)


def test_real_encoders_give_the_mean_of_their_sentences(encoders):
    from retrace.host.edit_direction import make_direction

    kind, clip = encoders
    sources = [*SOURCES, "a (red:1.3) circle"]  # a weight makes the host encode an empty prompt
    direction = make_direction(clip, sources, [*TARGETS, *TARGETS])
    (from_tokens, from_pooled), (to_tokens, to_pooled) = (
        padded_mean(clip, sentences) for sentences in (sources, TARGETS)
    )
    assert torch.allclose(direction.tokens, to_tokens - from_tokens, atol=1e-5)
    assert direction.tokens.shape[-1] == (2 * WIDTH if kind == "SDXL" else WIDTH)
    assert float(direction.tokens.norm()) > 0.1
    if kind.startswith("T5"):
        assert direction.pooled is None and to_pooled is None
    else:
        assert torch.allclose(direction.pooled, to_pooled - from_pooled, atol=1e-5)
        assert float(direction.pooled.norm()) > 0.1


def test_real_encoders_run_once_for_many_sentences(encoders):
    import comfy.sd1_clip
    from retrace.host.edit_direction import make_direction

    kind, clip = encoders
    calls = []
    found = [module for module in clip.cond_stage_model.modules()
             if isinstance(module, comfy.sd1_clip.SDClipModel)]
    hooks = [one.register_forward_hook(lambda *call: calls.append(call)) for one in found]
    make_direction(clip, SOURCES, TARGETS)
    for hook in hooks:
        hook.remove()
    # sentences of different lengths cannot share a batch where nothing pads them
    expected = len(SOURCES) + len(TARGETS) if kind == "T5 unpadded" else 2 * len(found)
    assert len(calls) == expected
    assert not any(module._forward_hooks for module in found)


def test_a_direction_between_single_prompts_arrives_at_the_target(encoders):
    from retrace.attention.edit_direction import add_direction
    from retrace.host.edit_direction import make_direction
    from retrace.host.tokens import encode

    _, clip = encoders
    direction = make_direction(clip, SOURCES[:1], TARGETS[:1])
    ((tokens, extra),) = add_direction(encode(clip, SOURCES[0]), direction, 1.0)
    ((wanted, given),) = encode(clip, TARGETS[0])
    assert torch.allclose(tokens, wanted, atol=1e-5)
    if given["pooled_output"] is not None:
        assert torch.allclose(extra["pooled_output"], given["pooled_output"], atol=1e-5)


def test_equal_sentences_are_refused(demo):
    from retrace.diffusion.errors import PlanError
    from retrace.host.edit_direction import make_direction

    with pytest.raises(PlanError, match="direction is zero"):
        make_direction(demo.clip, SOURCES, SOURCES)


def test_missing_encoder_is_refused(comfy):
    from retrace.diffusion.errors import HostError
    from retrace.host.edit_direction import make_direction

    with pytest.raises(HostError, match="no text encoder"):
        make_direction(None, SOURCES, TARGETS)


def test_single_pair_of_prompts_arrives_at_the_target_prompt(demo):
    # with one sentence each, source + direction is the target's own embedding
    from retrace.attention.edit_direction import add_direction
    from retrace.host.edit_direction import make_direction
    from retrace.host.tokens import encode

    direction = make_direction(demo.clip, SOURCES[:1], TARGETS[:1])
    moved = add_direction(encode(demo.clip, SOURCES[0]), direction, 1.0)
    assert torch.allclose(moved[0][0], encode(demo.clip, TARGETS[0])[0][0], atol=1e-5)


def test_a_saved_direction_is_listed_and_loaded(demo, tmp_path, monkeypatch):
    import folder_paths
    from retrace.diffusion.errors import PlanError
    from retrace.host import edit_direction

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    direction = edit_direction.make_direction(demo.clip, SOURCES, TARGETS)
    name = edit_direction.save_direction(direction, "retrace/red-to-green")
    assert edit_direction.list_directions() == [name]
    assert torch.equal(edit_direction.load_direction(name).tokens, direction.tokens)
    for outside in ("../secret.direction.safetensors", "nothing [output]"):
        with pytest.raises(PlanError, match="no direction file"):
            edit_direction.load_direction(outside)
    with pytest.raises(PlanError, match="output folder"):
        edit_direction.save_direction(direction, "../../outside")


def test_pix2pix_zero_runs_on_the_demo_model(demo):
    from retrace.attention.edit_direction import add_direction
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.edit_direction import make_direction
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.inversion import invert
    from retrace.host.tokens import encode

    caption = encode(demo.clip, "a red circle on a blue background")
    latent = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))}
    trajectory = invert(demo.model, caption, latent, steps=4)[0]
    trajectory = trajectory.replace(source_rule=SourceRule(pinned=True))
    target = add_direction(caption, make_direction(demo.clip, ["red"], ["green"]), 1.0)
    guided = with_controller(demo.model, AttentionGuidance(0.05))
    with torch.inference_mode():
        result = run_edit(guided, trajectory, target, encode(demo.clip, ""), cfg=3.0)
    assert result.edited.isfinite().all()
    assert len(result.report["gradient_norm"].split()) == 4
