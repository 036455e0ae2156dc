"""The Paste-Back node on what the host's own VAE decodes."""

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def vae(comfy):
    from retrace.demo.bundle import load_demo

    return load_demo().vae


@pytest.fixture
def node(comfy):
    from retrace.nodes.paste_back import PasteBack

    return PasteBack


def test_a_photo_that_the_host_cut_to_size_is_whole_again(node, vae):
    """Unedited: what was cut off is put around the place it was cut from."""
    photo = torch.rand(1, 70, 85, 3, generator=torch.Generator().manual_seed(0))
    cropped = vae.vae_encode_crop_pixels(photo)
    assert cropped.shape == (1, 64, 80, 3)
    decoded = vae.decode(vae.encode(photo))
    result, changed = node.execute(decoded, decoded, photo, 16.0, 0).args
    assert torch.equal(result, photo) and changed.max() == 0
    # edited everywhere: the host's cut is replaced, and nothing else
    result, changed = node.execute(cropped + 1, cropped, photo, 16.0, 0).args
    inside = changed[0] == 1
    assert inside.sum() == 64 * 80
    assert torch.equal(result[0][inside], (cropped + 1)[0].flatten(0, 1))


def test_an_edit_of_which_nothing_is_left_says_so(node):
    picture = torch.rand(1, 16, 16, 3)
    said = node.execute(picture, picture, picture, 16.0, 0).ui.as_dict()["text"][0]
    assert said.startswith("Nothing of the edit is left")
    said = node.execute(1 - picture.round(), picture.round(), picture, 16.0, 0).ui.as_dict()
    assert said["text"][0] == "0.0 % of the pixels are the photo's"
