"""Token positions from the T5 tokenizer that PixArt has, by its own character offsets."""

import pytest

pytestmark = pytest.mark.host


class T5Only:
    """A CLIP object reduced to PixArt's real tokenizer."""

    def __init__(self) -> None:
        import comfy.text_encoders.pixart_t5

        self.tokenizer = comfy.text_encoders.pixart_t5.PixArtTokenizer()

    def tokenize(self, text, **options):
        return self.tokenizer.tokenize_with_weights(text, **options)


@pytest.fixture(scope="module")
def clip(comfy):
    return T5Only()


def pieces(clip, prompt):
    """The vocabulary entries of each word."""
    names = clip.tokenizer.clip_t5xxl.inv_vocab
    return {
        word.text: [names[prompt.tokens[position].id] for position in word.tokens]
        for word in prompt.words()
    }


def test_words_of_several_pieces_hold_all_of_them_and_nothing_else(clip):
    from retrace.host.tokens import tokenize

    prompt = tokenize(clip, "a photorealistic hippopotamus on a bench")
    found = pieces(clip, prompt)
    for word, tokens in found.items():
        assert "".join(tokens).replace("▁", "") == word
    assert len(found["hippopotamus"]) > 1 and found["a"] == ["▁", "a"]  # T5 has none for " a"
    # one position after the words: the end token; T5 has no start token and PixArt no padding
    owned = sum(len(word.tokens) for word in prompt.words())
    assert len(prompt.tokens) == owned + 1
    assert prompt.length == len(prompt.tokens) and prompt.tokens[-1].special


@pytest.mark.parametrize(
    "text",
    [
        "a ﬁsh in a ﬂat",  # ligatures, which the tokenizer writes out
        "ｆｕｌｌ width cat",  # full-width letters, which it narrows
        "naïve café 🐱 sits",  # accents, and a character it does not know
        "½ cup of   tea\nplease",  # one character as several; many spaces, a line break
        "猫 and 犬",
    ],
)
def test_characters_that_the_tokenizer_rewrites_stay_with_their_words(text, clip):
    from retrace.host.tokens import tokenize

    prompt = tokenize(clip, text)
    words = prompt.words()
    assert [word.text for word in words] == text.split()
    owned = [position for word in words for position in word.tokens]
    assert sorted(set(owned)) == list(range(len(prompt.tokens) - 1))  # all but the end token
    assert owned == sorted(owned) and len(owned) == len(set(owned))


def test_weights_in_brackets_do_not_move_words(clip):
    from retrace.host.tokens import tokenize

    plain = tokenize(clip, "a fluffy cat on a wooden bench")
    weighted = tokenize(clip, "a (fluffy:1.3) cat on a ((wooden bench))")
    assert weighted.text == plain.text
    for word in ("fluffy", "cat", "wooden bench"):
        ids = [[p.tokens[i].id for i in p.span(word)] for p in (plain, weighted)]
        # a bracket cut off from its space may leave a piece for the space alone before the word
        assert ids[0][-1] == ids[1][-1]


def test_a_word_of_more_pieces_shifts_what_follows_and_stays_aligned(clip):
    from retrace.attention.alignment import make_token_map
    from retrace.host.tokens import pair_prompts

    pair = pair_prompts(clip, "a cat sits on a bench", "a hippopotamus sits on a bench")
    shift = len(pair.target.tokens) - len(pair.source.tokens)
    assert shift > 0
    swapped = make_token_map(pair.source, pair.target, "replace")
    for word in ("sits", "on", "bench"):
        for old, new in zip(pair.source.span(word), pair.target.span(word), strict=True):
            assert swapped.weights[old, new] == 1 and new == old + shift
    (cat,), hippo = pair.source.span("cat"), pair.target.span("hippopotamus")
    assert float(swapped.weights[cat, list(hippo)].sum()) == pytest.approx(1)
    assert swapped.weights[-1, -1] == 1  # end tokens look at each other
    refined = make_token_map(pair.source, pair.target, "refine")
    assert refined.mapped[list(hippo)].tolist() == [0] * len(hippo)
    assert bool(refined.mapped[list(pair.target.span("sits"))].all())


def test_a_tokenizer_without_offsets_of_its_own_is_searched_instead(comfy):
    from helpers_host import TokenizerOnly
    from retrace.host.tokens import own_spans, tokenize

    clip = TokenizerOnly()
    prompt = tokenize(clip, "a cat, asleep")
    found = [(token.start, token.end) for token in prompt.tokens[:6]]
    assert found == [(-1, -1), (0, 1), (2, 5), (5, 6), (7, 13), (-1, -1)]
    assert own_spans(object(), "a cat", [320, 2368], [False, False]) is None
