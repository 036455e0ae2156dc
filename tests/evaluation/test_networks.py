"""Metrics of networks, by tiny random ones in the files that the real ones come in."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from retrace.evaluation.jobs import Job
from retrace.evaluation.networks import (
    CLIP,
    DINO,
    MEAN,
    STD,
    Networks,
    bounding_box,
    self_similarity,
)

SIDE = 64
WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "dog</w>", "cat</w>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random networks of the right kinds."""
    pytest.importorskip("torchmetrics")
    transformers = pytest.importorskip("transformers")
    torchvision = pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("networks")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 32}  # fmt: skip
        vit = transformers.ViTConfig(**small, image_size=224, patch_size=56)
        transformers.ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / DINO)
        clip = transformers.CLIPConfig(
            text_config={**small, "vocab_size": len(WORDS), "max_position_embeddings": 8,
                         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
            vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=16,
        )  # fmt: skip
        transformers.CLIPModel(clip).save_pretrained(folder / CLIP)
        squeeze = torchvision.models.squeezenet1_1(weights=None)
    torch.save(squeeze.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    write_processor(transformers, folder / CLIP)
    return folder


def write_processor(transformers, folder):
    import json

    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    transformers.CLIPProcessor(images, tokens).save_pretrained(folder)


@pytest.fixture(scope="module")
def networks(folder):
    return Networks(folder)


@pytest.fixture
def job():
    rng = np.random.default_rng(0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, [0, -1]] = mask[[0, -1]] = True
    mask[10:40, 20:50] = True
    source = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Job("m", "1", "t", "a cat", "a dog", "", None, source, mask, None, {})


@pytest.fixture
def edited(job):
    return 255 - job.source


def changed_inside(job):
    """The source with noise where it may change."""
    noise = np.random.default_rng(1).integers(0, 256, job.source.shape, dtype=np.uint8)
    return np.where(job.mask[..., None], noise, job.source)


def test_an_unchanged_picture_has_no_distance(networks, job):
    for group in ("distance", "lpips"):
        assert all(abs(v) < 1e-6 for v in networks.measure(group, job, job.source).values())


@pytest.mark.parametrize(("way", "scale", "antialias"),
                         [("published", 255, False), ("corrected", 1, True)])  # fmt: skip
def test_structure_distance_equals_the_textbooks(networks, job, edited, way, scale, antialias):
    """Keys from the hidden states before the last layer, not from a hook."""
    model = networks.dino
    layers = model.layers if hasattr(model, "layers") else model.encoder.layer
    similarities = []
    for picture in (job.source, edited):
        x = torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255 * scale
        x = F.interpolate(x, (224, 224), mode="bilinear", antialias=antialias)
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.inference_mode():
            hidden = model(x, output_hidden_states=True).hidden_states[-2]
            last = layers[-1]
            attention = last.attention
            key = attention.k_proj if hasattr(attention, "k_proj") else attention.attention.key
            keys = key(last.layernorm_before(hidden))[0]
        products = keys @ keys.T
        lengths = products.diagonal().sqrt()
        similarities.append(products / (lengths[:, None] * lengths))
    expected = float((similarities[0] - similarities[1]).square().mean())
    found = networks.measure("distance", job, edited)[f"{way}_distance"]
    assert found == pytest.approx(expected, rel=1e-4) and found > 0


def test_self_similarity_is_the_cosine_of_tokens():
    found = self_similarity(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.5**0.5], [0.5**0.5, 1.0]]))


def test_published_lpips_is_torchmetrics_on_blanked_pictures(networks, job, edited):
    from torchmetrics.functional.image.lpips import _LPIPS

    oracle = _LPIPS(pretrained=True, net="squeeze", pnet_rand=True).eval()
    oracle.net.load_state_dict(networks.squeeze.net.state_dict())
    keep = torch.from_numpy(~job.mask).float()
    first, second = (
        torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255 * keep
        for picture in (job.source, edited)
    )
    with torch.inference_mode():
        expected = float(oracle(2 * first - 1, 2 * second - 1))
    found = networks.measure("lpips", job, edited)
    assert found["published_lpips"] == pytest.approx(expected, rel=1e-5)


def test_the_backbone_is_the_file_in_the_folder(networks, folder):
    weights = torch.load(folder / "squeezenet1_1-b8a52dc0.pth", weights_only=True)
    own = networks.squeeze.net.state_dict()
    assert torch.equal(own["slices.0.0.weight"], weights["features.0.weight"])
    assert torch.equal(own["slices.6.12.expand3x3.bias"], weights["features.12.expand3x3.bias"])


def test_corrected_lpips_sees_nothing_of_what_may_change(networks, job, edited):
    found = networks.measure("lpips", job, changed_inside(job))
    assert found["corrected_lpips"] == pytest.approx(0, abs=1e-7)
    assert networks.measure("lpips", job, edited)["corrected_lpips"] > 0


def test_lpips_is_no_number_where_all_may_change(networks, job, edited):
    for mask in (None, np.ones_like(job.mask)):
        found = networks.measure("lpips", replace(job, mask=mask), edited)
        assert all(map(math.isnan, found.values()))


def features(networks, picture, text):
    given = networks.clip_processor(text=[text], images=[picture], return_tensors="pt",
                                    padding=True)  # fmt: skip
    model = networks.clip_model
    with torch.inference_mode():
        vision = model.visual_projection(model.vision_model(given["pixel_values"]).pooler_output)
        words = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
        return vision[0], model.text_projection(words)[0]


def test_clip_is_a_hundred_times_the_cosine_and_never_negative(networks, job, edited):
    a, b = features(networks, edited, job.target_prompt)
    expected = max(100 * float(a @ b / (a.norm() * b.norm())), 0)
    found = networks.measure("clip", job, edited)
    assert found["published_clip_whole"] == pytest.approx(expected, abs=1e-3)
    assert found["corrected_clip_whole"] == found["published_clip_whole"]
    assert min(found.values()) >= 0


def test_published_clip_of_the_part_blanks_the_rest_the_corrected_one_cuts_it_out(networks, job):
    first, second = changed_inside(job), changed_inside(job)
    second[~job.mask] = 7
    a, b = (networks.measure("clip", job, picture) for picture in (first, second))
    assert a["published_clip_edited"] == b["published_clip_edited"]
    assert a["corrected_clip_edited"] == b["corrected_clip_edited"]
    assert a["published_clip_whole"] != b["published_clip_whole"] or a["published_clip_whole"] == 0


def test_the_parts_box_leaves_out_the_forced_border(job, edited):
    assert np.array_equal(bounding_box(edited, job.mask), edited[10:40, 20:50])
    border = np.zeros_like(job.mask)
    border[0] = True
    assert bounding_box(edited, border) is edited


def test_what_is_absent_is_told_with_what_is_missing(tmp_path, folder):
    assert Networks(folder).groups == ("distance", "lpips", "clip")
    (tmp_path / DINO).mkdir()
    (tmp_path / DINO / "config.json").write_text("{}")
    found = Networks(tmp_path)
    assert found.groups == ("distance",)
    assert "clip-vit-large-patch14" in found.absent["clip"]
    assert "squeezenet1_1" in found.absent["lpips"]
    assert set(Networks(None).absent) == {"distance", "lpips", "clip"}
