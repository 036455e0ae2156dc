"""The demo's image encoder, and StyleDiffusion on the demo model with it."""

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture
def vision(comfy):
    from retrace.demo.vision import load_vision

    return load_vision()


def test_encoder_is_the_same_each_time_and_leaves_the_global_generator(vision, comfy):
    from retrace.demo.vision import load_vision

    before = torch.random.get_rng_state()
    again = load_vision()
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(vision.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.is_inference()


def test_tokens_tell_pictures_and_places_apart(vision):
    from retrace.demo.scenes import SCENES, as_image
    from retrace.host.vision import image_tokens

    tokens = [image_tokens(vision, as_image(SCENES[name].image), 1) for name in
              ("colour", "shape")]
    assert tokens[0].shape == (1, 65, 128)
    assert float((tokens[0] - tokens[1]).square().mean().sqrt()) > 0.1
    assert float(tokens[0].std(1).mean()) > 0.1


def test_a_guided_reconstruction_is_nearer_than_plain_ddims(vision):
    from retrace.demo.bundle import load_demo
    from retrace.demo.scenes import SCENES, as_image
    from retrace.host.editing import run_edit
    from retrace.host.inversion import invert
    from retrace.host.style_diffusion import train

    model, clip, vae = load_demo()
    scene = SCENES["colour"]
    image = as_image(scene.image)
    latent = {"samples": vae.encode(image)}
    source, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (scene.prompts[0], "")
    )
    trajectory = invert(model, source, latent, steps=4)[0]
    trained = train(
        model, trajectory, negative, vision, image, inner_steps=5, start="identity"
    )[0]

    def error(walked):
        found = run_edit(model, walked, source, negative, cfg=7.5).source
        return float((found - trajectory.clean).square().mean())

    assert error(trained) < 0.5 * error(trajectory)
