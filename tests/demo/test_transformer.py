"""The demo's transformer as the host sees it: a PixArt like any other, under the same CLIP."""

import pytest
import torch
from retrace.demo.bundle import KINDS, TRANSFORMER_WEIGHTS, load_demo, read_recipe

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def demo(comfy):
    return load_demo(kind="dit")


def conditioning(demo, text):
    return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(text))


def sample(demo, noise, text, steps=2):
    import comfy.sample

    with torch.inference_mode():
        return comfy.sample.sample(
            demo.model, noise, steps, 4.5, "euler", "normal", conditioning(demo, text),
            conditioning(demo, ""), torch.zeros_like(noise), disable_pbar=True, seed=0,
        )  # fmt: skip


def test_it_is_an_eps_pixart_whose_layers_retrace_reaches(demo):
    from comfy.model_base import ModelType, PixArt
    from retrace.host.model import attention_sites, model_facts
    from retrace.host.pixart import is_pixart

    assert isinstance(demo.model.model, PixArt)
    assert is_pixart(demo.model.model.diffusion_model)
    assert demo.model.model.model_type == ModelType.EPS
    assert len(attention_sites(demo.model)) == 2 * 8
    unet = load_demo()
    assert model_facts(demo.model) != model_facts(unet.model)  # trajectories are not exchanged
    assert not any(p.is_inference() or p.requires_grad for p in demo.model.model.parameters())


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 24), (1, 18, 22)])
def test_it_samples_batches_and_other_sizes(demo, shape):
    batch, height, width = shape
    noise = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(0))
    latent = sample(demo, noise, "a red circle on a plain white background")
    assert latent.shape == noise.shape
    assert torch.isfinite(latent).all()


@pytest.mark.parametrize(("word", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_ground_has_the_colour_that_the_caption_says(demo, word, channel):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text = f"a white circle in the middle on a plain {word} background"
    image = demo.vae.decode(sample(demo, noise, text, steps=8))
    corners = image[:, [4, 4, -4, -4], [4, -4, 4, -4]].mean((0, 1))
    assert int(corners.argmax()) == channel


@pytest.mark.parametrize("shape", ["triangle", "square"])
def test_some_shapes_are_those_that_the_caption_says(demo, shape):
    from retrace.evaluation.scenes import Background, Scene, SceneObject, check

    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    text = f"a white {shape} on a plain blue background"
    images = demo.vae.decode(sample(demo, noise, text, steps=20)).numpy()
    scene = Scene(Background("blue"), (SceneObject(shape, "white", 64, 64, 24),))
    assert sum(check(image, scene).shape for image in images) >= 2


def test_another_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=", ".join(KINDS)):
        load_demo(kind="flux")


def test_the_file_says_how_it_was_made_and_both_fit_the_limit():
    recipe = read_recipe(TRANSFORMER_WEIGHTS)
    for entry in ("made_by", "hardware", "license", "denoiser_steps", "denoiser_seconds"):
        assert recipe[entry]
    files = TRANSFORMER_WEIGHTS.parent.glob("*.safetensors")
    assert sum(file.stat().st_size for file in files) < 40e6
