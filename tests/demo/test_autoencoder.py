"""The demo autoencoder's network, without weights and without a host."""

import pytest
import torch
from retrace.demo.autoencoder import Autoencoder
from retrace.demo.bundle import WEIGHTS, expand_vocabulary, load_demo, read_recipe, read_weights


@pytest.mark.parametrize("size", [(128, 128), (128, 192), (64, 96)])
def test_latents_are_an_eighth_of_the_picture(size):
    net = Autoencoder().eval()
    with torch.inference_mode():
        latent = net.encode(torch.zeros(2, 3, *size))
        assert latent.shape == (2, 4, size[0] // 8, size[1] // 8)
        assert net.decode(latent).shape == (2, 3, *size)


def test_shift_and_scale_normalise_what_the_encoder_gives():
    net = Autoencoder().eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = net.encode(pixels)
        net.shift.fill_(2.0)
        net.scale.fill_(4.0)
        torch.testing.assert_close(net.encode(pixels), (before - 2.0) / 4.0)


def test_words_never_trained_get_the_mean_row():
    table = expand_vocabulary(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([7, 49407]))
    assert table.shape == (49408, 2)
    assert table[7].tolist() == [1.0, 2.0]
    assert table[49407].tolist() == [3.0, 6.0]
    assert table[0].tolist() == [2.0, 4.0]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="reinstall"):
        load_demo(tmp_path / "none.safetensors")


def test_the_weights_are_small_halves_that_say_how_they_were_made():
    assert WEIGHTS.stat().st_size < 25_000_000
    recipe = read_recipe()
    assert {"made_by", "hardware", "license", "denoiser_steps"} <= recipe.keys()
    weights = read_weights()
    assert all(torch.isfinite(t).all() for t in weights.values())
