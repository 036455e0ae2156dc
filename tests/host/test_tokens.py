"""Token positions from the host's real tokenizers: weights, embeddings, long prompts, encoders."""

import pytest
import torch
from helpers_host import TokenizerOnly

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def clip(comfy):
    return TokenizerOnly()


class SDXLTokenizerOnly:
    """A CLIP object reduced to SDXL's pair of real tokenizers."""

    def __init__(self):
        import comfy.sdxl_clip

        self.tokenizer = comfy.sdxl_clip.SDXLTokenizer()

    def tokenize(self, text):
        return self.tokenizer.tokenize_with_weights(text)


@pytest.fixture(scope="module")
def sdxl(comfy):
    return SDXLTokenizerOnly()


@pytest.mark.parametrize("number", range(15))
def test_words_have_the_positions_of_the_published_code(number, clip, golden):
    from retrace.host.tokens import tokenize

    pair = golden("aligner/aligner")[1]["pairs"][number]
    for side, inds in (("src", "word_inds_src"), ("tgt", "word_inds_tgt")):
        prompt = tokenize(clip, pair[side])
        assert prompt.ids == pair[f"{side}_ids"]
        found: dict[str, list[int]] = {}
        for word in prompt.words():
            found.setdefault(word.text, []).extend(word.tokens)
        assert found == {word: where for word, where in pair[inds].items() if word}


def test_weights_in_brackets_do_not_move_words(clip):
    from retrace.host.tokens import tokenize

    plain = tokenize(clip, "a fluffy cat on a wooden bench")
    weighted = tokenize(clip, "a (fluffy:1.3) cat on a ((wooden bench))")
    assert weighted.text == plain.text and weighted.tokens == plain.tokens
    assert weighted.span("wooden bench") == plain.span("wooden bench") == (6, 7)


def test_brackets_that_are_meant_are_words(clip):
    from retrace.host.tokens import tokenize

    prompt = tokenize(clip, r"a cat \(sitting\) here")
    assert prompt.text == "a cat (sitting) here" and len(prompt.span("sitting")) == 3


def test_an_edit_of_weighted_prompts_aligns_like_the_plain_one(clip):
    from retrace.attention.alignment import make_token_map
    from retrace.host.tokens import pair_prompts

    plain = pair_prompts(clip, "a cat on a bench", "a hippopotamus on a bench")
    weighted = pair_prompts(clip, "a (cat:1.2) on a bench", "a hippopotamus on a (bench:0.8)")
    for mode in ("replace", "refine"):
        maps = [make_token_map(pair.source, pair.target, mode) for pair in (plain, weighted)]
        assert torch.equal(maps[0].weights, maps[1].weights)


@pytest.fixture(scope="module")
def embedding_clip(comfy, tmp_path_factory):
    """A tokenizer that knows one embedding of three vectors."""
    import comfy.sd1_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("embeddings")
    vectors = torch.randn(3, 768, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, folder / "mytoken.safetensors")
    clip = TokenizerOnly()
    clip.tokenizer = comfy.sd1_clip.SD1Tokenizer(embedding_directory=str(folder))
    return clip


def test_words_after_an_embedding_have_their_own_positions(embedding_clip):
    from retrace.host.tokens import tokenize

    prompt = tokenize(embedding_clip, "a embedding:mytoken cat on a bench")
    assert prompt.span("cat") == (5,)  # start, a, three vectors, cat
    assert prompt.span("bench") == (8,) and prompt.length == 10


def test_an_embedding_in_both_prompts_is_aligned_with_itself(embedding_clip):
    from retrace.attention.alignment import make_token_map
    from retrace.host.tokens import pair_prompts

    pair = pair_prompts(
        embedding_clip, "a embedding:mytoken cat", "a fluffy embedding:mytoken cat"
    )
    token_map = make_token_map(pair.source, pair.target, "refine")
    origins = token_map.weights.argmax(0)[:8].tolist()
    assert token_map.mapped[:8].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert origins[3:7] == [2, 3, 4, 5]


def test_a_long_prompt_keeps_its_words_across_chunks(clip):
    from retrace.attention.alignment import make_token_map
    from retrace.host.tokens import pair_prompts

    words = [f"red{n}" for n in range(40)]  # more than one chunk of 75 tokens
    pair = pair_prompts(clip, "a cat and " + " ".join(words), "a cat and " + " ".join(words[:5]))
    assert (len(pair.source.tokens), len(pair.target.tokens)) == (154, 77)
    last = pair.source.words()[-1]
    assert last.text == "red39" and min(last.tokens) >= 78
    token_map = make_token_map(pair.source, pair.target, "refine")
    assert token_map.weights.shape == (154, 77)
    assert bool(token_map.mapped[: pair.target.length - 1].all())


def test_the_two_encoders_of_sdxl_share_their_positions(sdxl):
    from retrace.host.tokens import tokenize

    text = "a photorealistic (hippopotamus:1.3) on a bench"
    prompt = tokenize(sdxl, text)
    one = tokenize(TokenizerOnly(), text)
    assert len(prompt.tokens) == 77 and prompt.length == one.length
    assert [word.tokens for word in prompt.words()] == [word.tokens for word in one.words()]
    assert set(sdxl.tokenize(text)) == {"g", "l"}


def test_a_word_that_is_not_there_is_refused_naming_the_words_that_are(clip):
    from retrace.attention.local_blend import LocalBlend
    from retrace.attention.prompt_to_prompt import PromptToPrompt
    from retrace.diffusion.errors import TokenMapError
    from retrace.host.tokens import pair_prompts

    pair = pair_prompts(clip, "a cat, asleep", "a dog, asleep")
    PromptToPrompt(pair, blend=LocalBlend(("cat",), ("Dog",)))  # punctuation and case are no matter
    with pytest.raises(TokenMapError, match=r"'zebra'.*'dog,', 'asleep'"):
        PromptToPrompt(pair, blend=LocalBlend((), ("zebra",)))
