"""Prompts as token positions and words, from whatever tokenizer made them. Pure text, no model."""

import string
from collections.abc import Sequence
from typing import NamedTuple

from ..diffusion.errors import TokenMapError

PUNCTUATION = string.punctuation + "、。，！？；：“”‘’"


class Token(NamedTuple):
    """One position of the text encoder's output.

    id: the vocabulary number, or the name of a textual-inversion embedding.
    start, end: bytes of the prompt it stands for; -1 for special tokens and padding.
    """

    id: int | str
    start: int = -1
    end: int = -1

    @property
    def special(self) -> bool:
        return self.start < 0


class Word(NamedTuple):
    """A space-separated word: its text, its bytes in the prompt, its token positions."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


class TokenizedPrompt(NamedTuple):
    """A prompt with every position of its encoding (all chunks, padding included).

    text: as the encoder sees it (weights' brackets removed). length: positions before the final
    padding, start and end tokens counted.
    """

    text: str
    tokens: tuple[Token, ...]
    length: int

    @property
    def ids(self) -> list[int | str]:
        """Vocabulary numbers of the positions before the final padding."""
        return [token.id for token in self.tokens[: self.length]]

    def words(self) -> list[Word]:
        """Return the space-separated words in order."""
        words, start = [], 0
        for text in self.text.split(" "):
            end = start + len(text.encode())
            if text.strip():
                tokens = tuple(
                    position
                    for position, token in enumerate(self.tokens)
                    if not token.special and token.start < end and token.end > start
                )
                words.append(Word(text, start, end, tokens))
            start = end + 1
        return words

    def span(self, phrase: str) -> tuple[int, ...]:
        """Return the token positions of a word or phrase, every occurrence of it.

        Words match as written or without surrounding punctuation, in any case.
        Raises: TokenMapError naming the words there are.
        """
        wanted = [bare(part) for part in phrase.split()]
        words = self.words()
        found: list[int] = []
        for first in range(len(words) - len(wanted) + 1):
            window = words[first : first + len(wanted)]
            if wanted and [bare(word.text) for word in window] == wanted:
                found += [position for word in window for position in word.tokens]
        if not found:
            names = ", ".join(repr(word.text) for word in words) or "none at all"
            raise TokenMapError(
                f"the word {phrase!r} is not in the prompt {self.text!r}; its words are: {names}"
            )
        return tuple(sorted(set(found)))


def bare(word: str) -> str:
    """Return a word as it is compared: lower case, without punctuation around it."""
    return word.strip().strip(PUNCTUATION).lower() or word.strip().lower()


def locate(pieces: Sequence[bytes | None], text: str) -> list[tuple[int, int]]:
    """Return the bytes of `text` that each piece stands for; (-1, -1) for None and lost pieces.

    pieces: decoded bytes of each token, without word marks; None for special tokens.
    A piece that is not found where it should be (a tokenizer that rewrites characters) is looked
    for a little further on; if it is not there either, it takes the rest of the current word.
    """
    haystack = text.lower().encode()
    if len(haystack) != len(text.encode()):
        haystack = text.encode()  # lower case changed the byte count: keep offsets true
    spans, at = [], 0
    for piece in pieces:
        if piece is None:
            spans.append((-1, -1))
            continue
        while at < len(haystack) and haystack[at : at + 1].isspace():
            at += 1
        piece = piece.strip()
        found = haystack.find(piece.lower(), at, at + len(piece) + 24) if piece else at
        if found >= 0:
            spans.append((found, found + len(piece)))
            at = found + len(piece)
        else:
            end = at
            while end < len(haystack) and not haystack[end : end + 1].isspace():
                end += 1
            spans.append((at, end) if end > at else (-1, -1))
    return spans
