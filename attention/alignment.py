"""Alignment of a target prompt's tokens with the source prompt's, for Prompt-to-Prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.errors import TokenMapError
from .tokens import TokenizedPrompt, Word

MODES = ("auto", "replace", "refine")


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Which source tokens each target token takes its attention from.

    weights: "source_tokens target_tokens" float32; column n mixes source maps for target token n.
    mapped: "target_tokens" float32 in {0, 1}; 0 keeps the target's own map for that token.
    mode: "replace" or "refine".
    """

    weights: Tensor
    mapped: Tensor
    mode: str

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.weights.shape[1:] != self.mapped.shape:
            raise TokenMapError(
                "a token map needs weights [source target] and a mask [target], got "
                f"{list(self.weights.shape)} and {list(self.mapped.shape)}"
            )
        if bool((self.weights < 0).any()):
            raise TokenMapError("token map weights must not be negative")

    def __deepcopy__(self, memo: dict) -> "TokenMap":
        return self


def make_token_map(
    source: TokenizedPrompt, target: TokenizedPrompt, mode: str = "auto", published: bool = False
) -> TokenMap:
    """Align two prompts: by words ("replace"), by sequence alignment ("refine"), or whichever fits.

    published: reproduce the reference's tails, which ignore a shift after the last change.
    Raises: TokenMapError for replace with different numbers of words, or an unknown mode.
    """
    if mode not in MODES:
        raise TokenMapError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if mode == "auto":
        mode = "replace" if len(source.words()) == len(target.words()) else "refine"
    if mode == "replace":
        return replacement_map(source, target, published)
    return refinement_map(source, target, published)


def refinement_map(
    source: TokenizedPrompt, target: TokenizedPrompt, published: bool = False
) -> TokenMap:
    """Align by longest common subsequence of token ids; unmatched target tokens keep their map.

    Source: Hertz et al. 2022 (arXiv:2208.01626), Sec. 3.2 "adding a new phrase"; the published
    code's Needleman-Wunsch scores (match 1, mismatch -1, gap 0).
    Changed: padding follows the end token; the published tail is the identity.
    """
    rows, columns = len(source.tokens), len(target.tokens)
    weights, mapped = torch.zeros(rows, columns), torch.zeros(columns)
    for position, origin in enumerate(align_sequences(source.ids, target.ids)):
        if origin >= 0:
            weights[origin, position], mapped[position] = 1, 1
    shift = 0 if published else source.length - target.length
    for position in range(target.length, columns):
        weights[min(max(position + shift, 0), rows - 1), position], mapped[position] = 1, 1
    return TokenMap(weights, mapped, "refine")


def align_sequences(source: Sequence[int | str], target: Sequence[int | str]) -> list[int]:
    """Return for each target token its source position, or -1 for a gap.

    Ties prefer a gap in the source, then a gap in the target, then a match.
    """
    rows, columns = len(source), len(target)
    score = [[0] * (columns + 1) for _ in range(rows + 1)]
    move = [["skip_source"] + ["skip_target"] * columns for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            skip_target, skip_source = score[i][j - 1], score[i - 1][j]
            match = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best = max(skip_target, skip_source, match)
            score[i][j] = best
            if best == skip_target:
                move[i][j] = "skip_target"
            elif best == skip_source:
                move[i][j] = "skip_source"
            else:
                move[i][j] = "match"
    origins, i, j = [-1] * columns, rows, columns
    while j > 0:
        if i > 0 and move[i][j] == "match":
            i, j = i - 1, j - 1
            origins[j] = i
        elif i == 0 or move[i][j] == "skip_target":
            j -= 1
        else:
            i -= 1
    return origins


def replacement_map(
    source: TokenizedPrompt, target: TokenizedPrompt, published: bool = False
) -> TokenMap:
    """Align word by word; a changed word's tokens share the attention of the word it replaces.

    Source: Hertz et al. 2022 (arXiv:2208.01626), Sec. 3.2 "word swap".
    Changed: after a swap that changes the token count, later words stay aligned; the published
    mapper[j, j] shifts them and leaves the last columns empty when the source has more tokens
    (algorithms 9.3), which `published` reproduces.
    Raises: TokenMapError when the prompts have different numbers of words.
    """
    source_words, target_words = source.words(), target.words()
    if len(source_words) != len(target_words):
        raise TokenMapError(
            f"replace needs prompts of the same number of words: {source.text!r} has "
            f"{len(source_words)} and {target.text!r} has {len(target_words)}; use mode 'refine' "
            "or reword one of them"
        )
    swaps = [
        (old, new)
        for old, new in zip(source_words, target_words, strict=True)
        if old.text != new.text and old.tokens and new.tokens
    ]
    rows, columns = len(source.tokens), len(target.tokens)
    weights, i, j = torch.zeros(rows, columns), 0, 0
    for old, new in swaps:
        while i < old.tokens[0] and j < new.tokens[0]:
            weights[i, j], i, j = 1, i + 1, j + 1
        share_word(weights, old, new)
        i, j = old.tokens[-1] + 1, new.tokens[-1] + 1
    for position in range(j, columns):
        origin = i + position - j
        if not published:
            weights[min(origin, rows - 1), position] = 1
        elif origin < rows:  # the published walk ends with the source and leaves a tail empty
            weights[position, position] = 1
    return TokenMap(weights, torch.ones(columns), "replace")


def share_word(weights: Tensor, old: Word, new: Word) -> None:
    """Write the block of one swapped word: pairwise if the token counts agree, else evenly."""
    if len(old.tokens) == len(new.tokens):
        for i, j in zip(old.tokens, new.tokens, strict=True):
            weights[i, j] = 1
        return
    for i in old.tokens:
        for j in new.tokens:
            weights[i, j] = 1 / len(new.tokens)
