"""Metrics against the benchmark's own numbers, closed forms, and a loop over windows."""

import math

import pytest
import torch
from retrace.evaluation import metrics


def picture(seed: int, height: int = 24, width: int = 20) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def published(golden):
    tensors, facts = golden("metrics/metrics")
    pictures = {
        name: tensors[name].permute(2, 0, 1)[None].float() / 255 for name in ("A", "B", "C")
    }
    return pictures, tensors["mask"][None].float(), facts["values"]


@pytest.mark.parametrize("pair", ["AB", "AC", "AA"])
@pytest.mark.parametrize("part", ["", "_unedit_part", "_edit_part"])
def test_published_convention_equals_the_published_numbers(published, pair, part):
    pictures, mask, values = published
    first, second = (pictures[name] for name in pair)
    where = {"": torch.ones_like(mask), "_unedit_part": 1 - mask, "_edit_part": mask}[part]
    found = metrics.blanked(first, second, where)
    expected = {name: values[f"{pair}.{name}{part}"] for name in ("psnr", "mse", "ssim")}
    assert float(found.psnr) == pytest.approx(expected["psnr"], rel=1e-5)
    assert float(found.mse) == pytest.approx(expected["mse"], rel=1e-5)
    # the published SSIM is computed in float32, where cancelling variances cost 1e-5
    assert float(found.ssim) == pytest.approx(expected["ssim"], abs=2e-5)


def test_published_convention_flatters_by_the_share_of_the_part(published):
    pictures, mask, _ = published
    first, second = pictures["A"], pictures["B"]
    share = float(mask.mean())
    gain = metrics.blanked(first, second, mask).psnr - metrics.masked(first, second, mask).psnr
    assert float(gain) == pytest.approx(-10 * math.log10(share), abs=1e-4)


def test_constant_difference_has_a_closed_form():
    first = torch.full((2, 3, 16, 16), 0.5)
    found = metrics.masked(first, first + torch.tensor([0.1, 0.01])[:, None, None, None])
    torch.testing.assert_close(found.psnr, torch.tensor([20.0, 40.0]), atol=1e-4, rtol=0)
    # flat pictures have no variance: only the luminance term is left
    lights = [(2 * 0.5 * b + 1e-4) / (0.25 + b * b + 1e-4) for b in (0.6, 0.51)]
    torch.testing.assert_close(found.ssim, torch.tensor(lights), atol=1e-6, rtol=0)


def test_ssim_equals_a_loop_over_windows():
    first, second = picture(0), picture(1)
    line = torch.exp(-(torch.arange(-5.0, 6.0, dtype=torch.float64) ** 2) / 4.5)
    window = torch.outer(line, line) / line.sum() ** 2
    values = []
    for c in range(3):
        for y in range(24 - 10):
            for x in range(20 - 10):
                a = first[0, c, y : y + 11, x : x + 11]
                b = second[0, c, y : y + 11, x : x + 11]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                vab = (window * (a - ma) * (b - mb)).sum()
                values.append(
                    (2 * ma * mb + 1e-4) * (2 * vab + 9e-4)
                    / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                )  # fmt: skip
    torch.testing.assert_close(metrics.ssim(first, second)[0], torch.stack(values).mean().float())


def test_a_mask_of_ones_changes_nothing():
    first, second = picture(0), picture(1)
    plain = metrics.masked(first, second)
    everywhere = metrics.masked(first, second, torch.ones(1, 24, 20))
    for value, expected in zip(everywhere, plain, strict=True):
        torch.testing.assert_close(value, expected)


def test_pixels_outside_the_mask_do_not_count():
    first = picture(0)
    mask = torch.ones(1, 24, 20)
    mask[:, :, 12:] = 0
    spoiled = first * mask[:, None]
    found = metrics.masked(first, spoiled, mask)
    assert float(found.mse) == 0 and float(found.psnr) == math.inf
    assert float(found.ssim) == pytest.approx(1, abs=1e-6)


def test_an_empty_part_is_nan_in_both_conventions():
    first, second = picture(0), picture(1)
    nothing = torch.zeros(1, 24, 20)
    for found in (metrics.masked(first, second, nothing), metrics.blanked(first, second, nothing)):
        assert all(math.isnan(float(value)) for value in found)
    assert metrics.mean_of_finite([1.0, math.nan, 3.0]) == 2
    assert math.isnan(metrics.mean_of_finite([math.nan]))


@pytest.mark.parametrize(
    ("shape", "mask_shape", "words"),
    [((1, 3, 24, 21), None, "one shape"), ((1, 3, 24, 20), (1, 20, 24), "expected a mask")],
)
def test_pictures_that_do_not_fit_are_refused(shape, mask_shape, words):
    mask = None if mask_shape is None else torch.ones(mask_shape)
    with pytest.raises(ValueError, match=words):
        metrics.masked(picture(0), torch.zeros(shape), mask)


def test_ssim_of_a_picture_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(picture(0, 10, 20), picture(1, 10, 20))
