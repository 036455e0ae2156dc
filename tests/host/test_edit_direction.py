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


class TwoEncoders:
    """A text encoder beside itself, as SDXL has two, with a pooled vector."""

    def __init__(self, clip):
        self.clip = clip

    def tokenize(self, text):
        tokens = self.clip.tokenize(text)
        (entry,) = tokens.values()
        return {"g": entry, "l": entry}

    def encode_from_tokens(self, tokens, return_pooled=False):
        assert return_pooled
        (name,) = self.clip.tokenize("").keys()
        out, pooled = self.clip.encode_from_tokens({name: tokens["g"]}, return_pooled=True)
        return torch.cat([out, out], dim=-1), pooled


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


def test_several_encoders_give_a_pooled_direction_too(demo):
    from retrace.host.edit_direction import make_direction

    clip = TwoEncoders(demo.clip)
    direction = make_direction(clip, SOURCES, TARGETS)
    source, target = one_by_one(clip, SOURCES), one_by_one(clip, TARGETS)
    assert torch.allclose(direction.tokens, target[0] - source[0], atol=1e-5)
    assert torch.allclose(direction.pooled, target[1] - source[1], atol=1e-5)


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
