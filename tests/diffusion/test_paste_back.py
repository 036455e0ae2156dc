"""Paste-back by hand: the photo where nothing changed, the edit elsewhere."""

import pytest
import torch
from retrace.diffusion.errors import LatentError, PlanError
from retrace.diffusion.paste_back import paste_back


def pictures(count: int = 1, height: int = 12, width: int = 10):
    """Return a photo, its reconstruction (off by a little everywhere) and an edit equal to that."""
    photo = torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))
    source = photo * 0.8 + 0.1
    return photo, source, source.clone()


def test_where_nothing_was_edited_the_photo_is_back_bit_for_bit():
    photo, source, edited = pictures()
    edited[:, 3:6, 2:5, 1] += 0.5
    result, changed = paste_back(edited, source, photo, tolerance=16)
    inside = torch.zeros(1, 12, 10, dtype=torch.bool)
    inside[:, 3:6, 2:5] = True
    assert torch.equal(changed, inside.float())
    assert torch.equal(result[~inside], photo[~inside])
    assert torch.equal(result[inside], edited[inside])


@pytest.mark.parametrize(
    ("levels", "share"), [(0, 0), (19.9, 0), (30, 0.25), (40, 0.5), (60, 1), (100, 1)]
)
def test_the_edit_comes_in_between_one_and_three_tolerances(levels, share):
    photo, source, edited = pictures()
    edited[..., 2] += levels / 255
    edited[..., 0] -= levels / 2 / 255  # the most different channel counts
    result, changed = paste_back(edited, source, photo, tolerance=20)
    torch.testing.assert_close(changed, torch.full_like(changed, share), atol=1e-4, rtol=0)
    expected = photo + share * (edited - photo)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_with_no_tolerance_the_photo_stays_only_where_both_are_equal():
    photo, source, edited = pictures()
    edited[:, 0, 0] += 1e-6
    result, changed = paste_back(edited, source, photo, tolerance=0)
    assert changed.sum() == 1 and changed[0, 0, 0] == 1
    assert torch.equal(result[:, 1:], photo[:, 1:])


def test_outside_a_mask_the_photo_stays_whatever_the_edit_did():
    photo, source, edited = pictures()
    mask = torch.zeros(1, 12, 10)
    mask[:, :, 5:] = 1
    result, changed = paste_back(1 - edited, source * 0, photo, mask, tolerance=1)
    assert torch.equal(result[:, :, :5], photo[:, :, :5])
    assert changed[:, :, :5].max() == 0 and changed[:, :, 5:].min() == 1


def test_a_mask_of_another_size_is_brought_to_the_picture_s():
    photo, source, edited = pictures()
    mask = torch.tensor([[[0.0, 1.0]]])  # 1 x 2 pixels
    _, changed = paste_back(edited + 0.9, source, photo, mask)
    assert changed[..., 0].max() == 0 and changed[..., -1].min() > 0.9999


def test_a_mask_of_the_photo_s_size_is_cut_like_the_photo():
    photo, source, edited = pictures(height=19, width=10)
    mask = torch.zeros(1, 19, 10)
    mask[:, 1:4] = 1
    part = (slice(None), slice(1, 17))
    _, changed = paste_back(edited[part] + 0.9, source[part], photo, mask)
    assert torch.equal(changed, mask)


def test_feather_averages_over_the_square_around_and_not_over_what_is_outside():
    photo, source, edited = pictures()
    edited[:, 6, 5] += 0.9
    edited[:, 0, 0] += 0.4
    _, changed = paste_back(edited, source, photo, tolerance=10.2, feather=1)  # 0.04 to 0.12
    expected = torch.zeros(12, 10)
    expected[5:8, 4:7] = (0.9 / 9 - 0.04) / 0.08
    expected[:2, :2] = torch.tensor(
        [[(0.4 / 4 - 0.04) / 0.08, (0.4 / 6 - 0.04) / 0.08],
         [(0.4 / 6 - 0.04) / 0.08, (0.4 / 9 - 0.04) / 0.08]]
    )  # fmt: skip
    torch.testing.assert_close(changed[0], expected, atol=1e-5, rtol=0)


def test_one_photo_serves_a_batch_of_edits_and_nothing_given_is_written_to():
    photo, source, edited = pictures()
    edits = torch.cat([edited, edited + 0.5])
    before = [tensor.clone() for tensor in (edits, source, photo)]
    result, changed = paste_back(edits, source, photo)
    assert result.shape == (2, 12, 10, 3)
    assert torch.equal(result[0], photo[0]) and changed[1].min() == 1
    for tensor, kept in zip((edits, source, photo), before, strict=True):
        assert torch.equal(tensor, kept)


def test_the_photo_s_border_that_the_autoencoder_cut_off_is_the_photo_s():
    photo, source, edited = pictures(height=19, width=21)
    part = (slice(None), slice(1, 17), slice(2, 18))  # 16 of 19 and of 21 pixels: 3 // 2 and 5 // 2
    result, changed = paste_back(edited[part] + 0.5, source[part], photo)
    assert result.shape == photo.shape
    assert torch.equal(result[part], edited[part] + 0.5)
    border = torch.ones(1, 19, 21, dtype=torch.bool)
    border[part] = False
    assert torch.equal(result[border], photo[border]) and changed[border].max() == 0


def test_alpha_is_left_out():
    photo, source, edited = pictures()
    result, _ = paste_back(edited, source, torch.cat([photo, photo[..., :1]], -1))
    assert torch.equal(result, photo)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, s, e: (e[:, 1:], s, p), "the edit is 10 x 11 and the reconstruction 10 x 12"),
        (lambda p, s, e: (e, s, p[:, :-1]), "the photo is 10 x 11 and the edit 10 x 12"),
        (lambda p, s, e: (e, s, torch.zeros(1, 200, 10, 3)), "the photo is 10 x 200"),
        (lambda p, s, e: (e.repeat(3, 1, 1, 1), s.repeat(2, 1, 1, 1), p), "a batch of 2"),
        (lambda p, s, e: (e, s, p, torch.ones(2, 12, 10)), "the mask has 2 images"),
    ],
)
def test_what_does_not_fit_is_said(change, said):
    with pytest.raises(LatentError, match=said):
        paste_back(*change(*pictures()))


@pytest.mark.parametrize("given", [{"tolerance": -1}, {"tolerance": 300}, {"feather": -1}])
def test_settings_out_of_range_are_said(given):
    photo, source, edited = pictures()
    with pytest.raises(PlanError, match="tolerance must be 0 to 255"):
        paste_back(edited, source, photo, **given)
