"""Windows: what their texts say, which steps and tokens they cover, which layers are too large."""

import pytest
import torch
from helpers_host import words_prompt
from retrace.attention.plan import RunFacts
from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt
from retrace.attention.sites import Site
from retrace.attention.windows import (
    parse_reweight,
    parse_word_windows,
    token_gates,
    window_steps,
)
from retrace.diffusion.errors import PlanError, TokenMapError

TARGET = words_prompt("a dog on a wooden bench")
PAIR = PromptPair(words_prompt("a cat on a wooden bench"), TARGET)


def test_word_windows_are_read_from_text():
    text = "dog: 0.8, wooden bench: 0.2-0.6\n a: 0"
    assert parse_word_windows(text) == (
        ("dog", (0.0, 0.8)), ("wooden bench", (0.2, 0.6)), ("a", (0.0, 0.0))
    )
    assert parse_word_windows(" \n") == ()


def test_factors_are_read_from_text_negative_ones_too():
    assert parse_reweight("dog: 2, wooden bench: -0.5") == (("dog", 2.0), ("wooden bench", -0.5))


@pytest.mark.parametrize(("parse", "text", "said"), [
    (parse_word_windows, "dog 0.8", "'dog 0.8'; write 'word: value'"),
    (parse_word_windows, "dog: soon", "'soon' is not a fraction"),
    (parse_reweight, "dog: much", "'much' is not a number"),
])
def test_text_that_cannot_be_read_is_quoted(parse, text, said):
    with pytest.raises(TokenMapError, match=said):
        parse(text)


def test_a_window_that_ends_before_it_starts_is_refused_naming_the_word():
    with pytest.raises(PlanError, match=r"window of 'dog'.*0\.6 to 0\.2"):
        parse_word_windows("dog: 0.6-0.2")


def test_a_word_has_its_own_window_and_the_others_keep_theirs():
    gates = token_gates(TARGET, 10, (0.0, 0.4), (("dog", (0.2, 0.8)), ("wooden bench", (0, 0))))
    dog, phrase = list(TARGET.span("dog")), list(TARGET.span("wooden bench"))
    others = sorted(set(range(len(TARGET.tokens))) - {*dog, *phrase})
    steps = torch.arange(10)
    assert torch.equal(gates[:, dog].all(1), (steps >= 2) & (steps < 8))
    assert not bool(gates[:, phrase].any())
    assert torch.equal(gates[:, others].all(1), steps < 4)


def test_a_window_for_a_word_that_is_not_there_is_refused_naming_those_that_are():
    with pytest.raises(TokenMapError, match=r"'zebra'.*'dog'"):
        PromptToPrompt(PAIR, word_windows=(("zebra", (0.0, 0.5)),))


def held_layers(facts, **options):
    """Return the numbers of the self-attention layers that are held at step 0."""
    control = PromptToPrompt(PAIR, **options).prepare(facts)
    return {site.order for site in facts.sites if control.self_rule(0, site, "cond")}


LEVELS = tuple(Site("self", "input", n, 0, n, 2**n) for n in range(4))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (48, 96), (37, 90)])
def test_the_same_layers_are_held_at_any_size(height, width):
    """The published limit of 32 x 32 tokens, for latents of 64 x 64: all but the first level."""
    assert held_layers(RunFacts(50, 0, height, width, 1, LEVELS)) == {1, 2, 3}


def test_the_limit_of_tokens_can_be_set():
    assert held_layers(RunFacts(50, 0, 64, 64, 1, LEVELS), self_tokens=16 * 16) == {2, 3}


def test_the_self_window_ends_and_leaves_the_unconditional_half_alone():
    control = PromptToPrompt(PAIR).prepare(RunFacts(50, 0, 64, 64, 1, LEVELS))
    held = [step for step in range(50) if control.self_rule(step, LEVELS[1], "cond")]
    assert held == list(range(30))
    assert control.self_rule(0, LEVELS[1], "uncond") is None


def test_steps_of_a_window_are_counted_the_published_way():
    assert window_steps((0.2, 0.6), 50) == range(10, 30)
    assert window_steps((0.0, 1.0), 7) == range(7)
