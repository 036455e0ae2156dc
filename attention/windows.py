"""When a controller acts: fractions and step numbers resolved to steps of one run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.errors import PlanError, TokenMapError
from .tokens import TokenizedPrompt

Window = tuple[float, float]
"""[start, end) as fractions of the steps, 0 the noisiest."""


def check_window(name: str, window: Window) -> Window:
    """Return the window, or raise PlanError if it is not 0 <= start <= end <= 1."""
    start, end = window
    if not 0 <= start <= end <= 1:
        raise PlanError(
            f"{name} must be fractions with 0 <= start <= end <= 1, got {start} to {end}"
        )
    return window


def window_steps(window: Window, steps: int) -> range:
    """Return the steps of a window, the published way: int(start N) to int(end N)."""
    return range(int(window[0] * steps), int(window[1] * steps))


def token_gates(
    prompt: TokenizedPrompt,
    steps: int,
    window: Window,
    word_windows: Sequence[tuple[str, Window]] = (),
) -> Tensor:
    """Return when each target token's cross-attention is taken from the source.

    Returned: "steps tokens" float32 in {0, 1}. word_windows override the window for single words.
    Source: Hertz et al. 2022 (arXiv:2208.01626), Sec. 3.2, tau_c per word; the published bounds
    int(f (N + 1)), over one step more than the run has.
    Raises: TokenMapError for a word that is not in the prompt.
    """
    gates = torch.zeros(steps + 1, len(prompt.tokens))

    def fill(tokens: slice | list[int], fractions: Window) -> None:
        gates[:, tokens] = 0
        first, last = (int(fraction * (steps + 1)) for fraction in fractions)
        gates[first:last, tokens] = 1

    fill(slice(None), window)
    for word, fractions in word_windows:
        fill(list(prompt.span(word)), fractions)
    return gates[:steps]


def parse_word_values(text: str, name: str) -> list[tuple[str, str]]:
    """Split "word: value, other words: value" (commas or lines) into pairs.

    Raises: TokenMapError naming the entry that has no colon.
    """
    pairs = []
    for entry in text.replace("\n", ",").split(","):
        if not entry.strip():
            continue
        word, colon, value = entry.rpartition(":")
        if not colon or not word.strip() or not value.strip():
            raise TokenMapError(
                f"{name}: cannot read {entry.strip()!r}; write 'word: value', separated by commas"
            )
        pairs.append((word.strip(), value.strip()))
    return pairs


def parse_word_windows(text: str) -> tuple[tuple[str, Window], ...]:
    """Read "cat: 0.8, wooden bench: 0.2-0.6" into words with [start, end) fractions."""
    windows = []
    for word, value in parse_word_values(text, "word_windows"):
        start, dash, end = value.partition("-")
        try:
            window = (float(start), float(end)) if dash else (0.0, float(start))
        except ValueError:
            raise TokenMapError(
                f"word_windows: {value!r} is not a fraction; write 'word: 0.8' or 'word: 0.2-0.6'"
            ) from None
        windows.append((word, check_window(f"the window of {word!r}", window)))
    return tuple(windows)


def parse_reweight(text: str) -> tuple[tuple[str, float], ...]:
    """Read "fluffy: 2, snow: -1" into words with factors."""
    factors = []
    for word, value in parse_word_values(text, "reweight"):
        try:
            factors.append((word, float(value)))
        except ValueError:
            raise TokenMapError(
                f"reweight: {value!r} is not a number; write 'word: 2' (1 changes nothing)"
            ) from None
    return tuple(factors)


def parse_words(text: str) -> tuple[str, ...]:
    """Read "cat, wooden bench" (commas or lines) into words and phrases."""
    entries = (entry.strip() for entry in text.replace("\n", ",").split(","))
    return tuple(dict.fromkeys(entry for entry in entries if entry))
