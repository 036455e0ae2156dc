"""Word maps against a softmax written out, and the pictures drawn of them."""

import pytest
import torch
from retrace.attention import heatmaps
from retrace.attention.maps import chosen_words, word_maps
from retrace.attention.sites import Site
from retrace.attention.store import Recorder, SiteShape, Slot, StoreSpec
from retrace.attention.tokens import Token, TokenizedPrompt
from retrace.diffusion.errors import LatentError, PlanError, TokenMapError

HEADS, TOKENS, STEPS, IMAGES, SIZE = 2, 6, 4, 2, (4, 8)
COARSE = Site("cross", "input", 3, 0, 1, 4)
FINE = Site("cross", "input", 1, 0, 0, 2)

PROMPT = TokenizedPrompt(
    "a red car",
    (Token(0), Token(1, 0, 1), Token(2, 2, 5), Token(3, 6, 8), Token(4, 8, 9), Token(5)),
    6,
)


@pytest.fixture(scope="module")
def store():
    sites = tuple((site, SiteShape(8, HEADS)) for site in (COARSE, FINE))
    spec = StoreSpec("a", "", tuple(range(STEPS)), STEPS, IMAGES, 4 * SIZE[0], 4 * SIZE[1], sites,
                     ("cond",), TOKENS, "fp32")  # fmt: skip
    recorder, generator = Recorder(spec), torch.Generator().manual_seed(0)
    for slot, shape in spec.slots().items():
        for step in range(STEPS if slot.part == "query" else 1):
            wanted = shape[1:] if slot.part == "query" else shape
            recorder.write(slot, step, 2 * torch.randn(wanted, generator=generator))
    return recorder.finish()


def textbook(store, site, steps, tokens) -> torch.Tensor:
    """Softmax of every query and key, head by head, summed over tokens: "images pixels"."""
    k = store.read(Slot("key", site), 0)
    total = 0.0
    for step in steps:
        q = store.read(Slot("query", site), step)
        for head in range(HEADS):
            part = slice(4 * head, 4 * head + 4)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5
            total = total + logits.softmax(-1)[..., tokens].sum(-1)
    return total / (HEADS * len(steps))


def test_maps_equal_a_softmax_written_out(store):
    maps = word_maps(store, PROMPT, ["red", "car"], window=(0.25, 0.75))
    assert maps.shape == (IMAGES, 2, *SIZE)
    for number, tokens in enumerate(([2], [3, 4])):
        expected = textbook(store, COARSE, [1, 2], tokens).view(IMAGES, *SIZE)
        torch.testing.assert_close(maps[:, number], expected)


def test_the_maps_of_all_tokens_sum_to_one(store):
    whole = TokenizedPrompt("abcdef", tuple(Token(i, i, i + 1) for i in range(6)), 6)
    maps = word_maps(store, whole, ["abcdef"], layers="all")
    assert maps.shape == (IMAGES, 1, 2 * SIZE[0], 2 * SIZE[1])
    torch.testing.assert_close(maps, torch.ones_like(maps))


def test_layers_can_be_chosen(store):
    fine = word_maps(store, PROMPT, ["red"], layers="input.1")
    expected = textbook(store, FINE, range(STEPS), [2]).view(IMAGES, 8, 16)
    torch.testing.assert_close(fine[:, 0], expected)


def test_a_window_outside_the_store_is_an_error(store):
    with pytest.raises(PlanError, match="none of which"):
        word_maps(store, PROMPT, ["red"], window=(0.9, 0.95))


def test_a_prompt_of_another_length_is_an_error(store):
    with pytest.raises(TokenMapError, match="6 tokens"):
        word_maps(store, PROMPT._replace(tokens=PROMPT.tokens[:5]), ["red"])


def test_words_are_read_from_text_or_all_of_them():
    assert chosen_words(PROMPT, "") == ["a", "red", "car"]
    assert chosen_words(PROMPT, "red car, a") == ["red car", "a"]
    with pytest.raises(TokenMapError, match="'red'"):
        chosen_words(PROMPT, "dog")


def test_lightness_of_the_colour_map_grows_evenly():
    srgb = heatmaps.colour_table(64).double()
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    lightness = 116 * luminance ** (1 / 3) - 16  # CIE L*, another measure than the map's own
    steps = lightness.diff()
    assert bool((steps > 0).all())
    assert float(steps.max() / steps.mean()) < 1.5


def test_a_sheet_shows_every_word_at_a_readable_size():
    image = torch.rand(1, 32, 64, 3, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(2, 3, 4, 8)
    maps[:, :, 1, 6] = torch.tensor([0.1, 0.2, 0.3])
    sheets = heatmaps.heat_sheets(image, ["a", "red", "car"], maps, {"mask": torch.ones(1, 32, 64)})
    tile = heatmaps.tile_size(32, 64)
    assert tile == (128, 256)
    assert sheets.shape[0] == 2
    assert sheets.shape[2] >= 5 * tile[1]
    assert torch.equal(sheets[0], sheets[1])
    assert bool(sheets.isfinite().all())


def test_the_hottest_place_of_a_map_is_the_brightest_of_its_tile():
    heat = torch.zeros(4, 8)
    heat[1, 6] = 1.0
    tile = heatmaps.word_tile("car", heat, torch.full((128, 256, 3), 0.5))
    brightest = int(tile.picture.sum(2).argmax())
    row, column = divmod(brightest, 256)
    assert 32 <= row < 64
    assert 192 <= column < 224
    assert tile.limits == (0.0, 1.0)


def test_a_mask_is_shown_as_the_picture_inside_and_dark_outside():
    picture = torch.full((128, 256, 3), 0.6)
    mask = torch.zeros(4, 8)
    mask[:2] = 1
    tile = heatmaps.mask_tile("source foreground", picture, mask)
    assert tile.label == "source foreground (50%)"
    assert torch.equal(tile.picture[:64], picture[:64])
    assert float(tile.picture[64:].max()) < 0.3


def test_every_mask_has_a_tile_of_its_own():
    image, maps = torch.zeros(1, 8, 8, 3), torch.zeros(2, 1, 4, 4)
    masks = {"one": torch.ones(2, 8, 8), "two": torch.ones(1, 16, 16)}
    one, both = (
        heatmaps.heat_sheets(image, ["a"], maps, {name: masks[name] for name in names})
        for names in (["one"], ["one", "two"])
    )
    assert both.shape[2] - one.shape[2] == heatmaps.SMALLEST + heatmaps.MARGIN


def test_pictures_that_do_not_fit_the_store_are_an_error():
    maps = torch.zeros(2, 1, 4, 4)
    with pytest.raises(LatentError, match="3 pictures"):
        heatmaps.heat_sheets(torch.zeros(3, 8, 8, 3), ["a"], maps)
    with pytest.raises(LatentError, match="target foreground"):
        masks = {"target foreground": torch.ones(3, 8, 8)}
        heatmaps.heat_sheets(torch.zeros(1, 8, 8, 3), ["a"], maps, masks)
