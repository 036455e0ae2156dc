"""Numbers of two IMAGEs and a MASK."""

import math

import pytest
import torch
from retrace.diffusion.errors import LatentError
from retrace.evaluation.edit_metrics import compare_images, mean


def image(value: float, batch: int = 1, side: int = 16) -> torch.Tensor:
    return torch.full((batch, side, side, 3), value)


def half_mask(side: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, :, side // 2 :] = 1
    return mask


def test_a_change_inside_the_mask_leaves_the_outside_exact():
    edited = image(0.5) + 0.1 * half_mask()[..., None]
    found = compare_images(image(0.5), edited, half_mask())
    assert float(found.outside.psnr) == math.inf and float(found.outside.mse) == 0
    assert float(found.inside.psnr) == pytest.approx(20, abs=1e-4)
    assert float(found.whole.psnr) == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)
    # blank pixels count as perfect in the published convention
    assert float(found.published[1].psnr) == pytest.approx(float(found.whole.psnr), abs=1e-4)
    assert "outside the mask: PSNR exact, SSIM 1.0000, MSE 0" in found.report()


def test_without_a_mask_the_whole_picture_is_outside():
    found = compare_images(image(0.5), image(0.6))
    assert found.inside is None and found.published is None
    assert float(found.outside.psnr) == pytest.approx(20, abs=1e-4)
    assert found.report() == "whole picture: PSNR 20.0 dB, SSIM 0.9836, MSE 0.01"


def test_a_mask_of_another_size_is_resized():
    edited = image(0.5) + 0.1 * half_mask()[..., None]
    found = compare_images(image(0.5), edited, half_mask(32))
    assert float(found.outside.mse) == 0
    assert float(found.inside.psnr) == pytest.approx(20, abs=1e-4)


def test_one_source_is_compared_with_a_batch_and_alpha_is_left_out():
    batch = torch.cat([image(0.5), image(0.6)])
    batch = torch.cat([batch, torch.rand(2, 16, 16, 1)], -1)
    found = compare_images(image(0.5), batch)
    assert found.whole.mse.tolist() == pytest.approx([0, 0.01], abs=1e-6)
    assert mean(found.whole.mse) == pytest.approx(0.005, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "mask", "words"),
    [
        (image(0, side=16), image(0, side=24), None, "16 x 16 and 24 x 24"),
        (image(0, side=8), image(0, side=8), None, "at least 11 x 11"),
        (image(0, 2), image(0, 3), None, "one batch has 2 images, the other 3"),
        (image(0, 3), image(0, 3), torch.ones(2, 16, 16), "mask has 2 images"),
    ],
)
def test_what_does_not_fit_is_refused(first, second, mask, words):
    with pytest.raises(LatentError, match=words):
        compare_images(first, second, mask)
