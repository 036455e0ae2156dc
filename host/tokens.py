"""Token positions of a prompt, from whatever tokenizer the host's CLIP object has."""

from typing import Any

import comfy.sd1_clip

from ..attention.prompt_to_prompt import PromptPair
from ..attention.tokens import Token, TokenizedPrompt, locate
from ..diffusion.errors import HostError, TokenMapError


def encode(clip: Any, text: str) -> list:
    """Return the host's CONDITIONING of a prompt, as CLIP Text Encode does."""
    if clip is None:
        raise HostError("the CLIP input is empty: this checkpoint carries no text encoder")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def pair_prompts(clip: Any, source: str, target: str, published: bool = False) -> PromptPair:
    """Tokenize both prompts. Raises: TokenMapError for an empty prompt."""
    for name, text, advice in (
        ("source", source, "describe what the photo shows"),
        ("target", target, "say what the result should show"),
    ):
        if not text.strip():
            raise TokenMapError(f"the {name} prompt is empty: {advice}")
    return PromptPair(tokenize(clip, source), tokenize(clip, target), published)


def tokenize(clip: Any, text: str) -> TokenizedPrompt:
    """Return every position of a prompt's encoding, all chunks in a row.

    Of several encoders whose positions coincide (SDXL) the first is used.
    Raises: HostError when encoders have positions of their own (SD3's CLIP beside T5).
    """
    encoded = clip.tokenize(text)
    lengths = {name: sum(map(len, chunks)) for name, chunks in encoded.items()}
    if len(set(lengths.values())) != 1 and len(lengths) > 1:
        raise HostError(
            f"this model's text encoders disagree on positions ({lengths}); "
            "Prompt-to-Prompt cannot align them yet"
        )
    name, chunks = next(iter(encoded.items()))
    tokenizer = find_tokenizer(clip.tokenizer, name)
    plain = plain_text(text)
    entries = [entry[0] for chunk in chunks for entry in chunk]
    ids = [entry if isinstance(entry, int) else embedding_name(entry) for entry in entries]
    specials = special_positions(tokenizer, chunks)
    pieces = [
        None if special else piece_bytes(tokenizer, entry)
        for entry, special in zip(entries, specials, strict=True)
    ]
    spans = own_spans(tokenizer, text, ids, specials) or locate(pieces, plain)
    return TokenizedPrompt(
        plain,
        tuple(Token(id_, *span) for id_, span in zip(ids, spans, strict=True)),
        used_length(tokenizer, ids, specials, len(chunks[-1])),
    )


def find_tokenizer(owner: Any, name: str) -> comfy.sd1_clip.SDTokenizer:
    """Return the tokenizer of one encoder inside the host's combined tokenizer."""
    for attribute in (f"clip_{name}", name, getattr(owner, "clip", "")):
        tokenizer = getattr(owner, attribute, None) if attribute else None
        if tokenizer is not None:
            return tokenizer
    if hasattr(owner, "inv_vocab"):
        return owner
    raise HostError(f"no tokenizer for {name!r} in {type(owner).__name__}")


def weighted_parts(text: str) -> list[str]:
    """Return the parts of a prompt that have weights of their own, without their brackets."""
    parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    return [comfy.sd1_clip.unescape_important(part) for part, _ in parsed]


def plain_text(text: str) -> str:
    """Return a prompt as the encoder sees it: without the brackets of weights."""
    return " ".join("".join(weighted_parts(text)).split())


def own_spans(
    tokenizer: Any, text: str, ids: list, specials: list[bool]
) -> list[tuple[int, int]] | None:
    """Return the bytes of the plain prompt that each position stands for, (-1, -1) for specials,
    by the tokenizer's own character offsets (T5 rewrites characters, so that searching would fail).

    None where the tokenizer has no offsets, or the positions are not all its own (textual
    inversions).
    """
    inner = getattr(tokenizer, "tokenizer", None)
    if not getattr(inner, "is_fast", False):
        return None
    raw, found, offsets = "", [], []
    last = -1 if tokenizer.tokenizer_adds_end_token else None
    for part in weighted_parts(text):
        if not part:
            continue
        made = inner(part, return_offsets_mapping=True)
        found += made["input_ids"][tokenizer.tokens_start : last]
        offsets += [
            (len(raw) + start, len(raw) + end)
            for start, end in made["offset_mapping"][tokenizer.tokens_start : last]
        ]
        raw += part
    if found != [id_ for id_, special in zip(ids, specials, strict=True) if not special]:
        return None
    spans = iter(plain_spans(raw, offsets))
    return [(-1, -1) if special else next(spans) for special in specials]


def plain_spans(raw: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of characters as spans of bytes of the text with its spaces made single.

    A span of space alone (T5 has a token for it, before a character of its own) is that of the
    character behind it.
    """
    places, at = [], 0
    for number, char in enumerate(raw):
        at += at > 0 and number > 0 and raw[number - 1].isspace() and not char.isspace()
        places.append(at)
        at += 0 if char.isspace() else len(char.encode())
    spans = []
    for start, end in offsets:
        while start < end and raw[end - 1].isspace():
            end -= 1
        while start < len(raw) and raw[start].isspace():
            start += 1
        end = max(end, min(start + 1, len(raw)))
        size = len(raw[end - 1].encode()) if start < end else 0
        spans.append((places[start], places[end - 1] + size) if size else (at, at))
    return spans


def embedding_name(entry: Any) -> str:
    """Name a position that is a vector, not a word, by its content (textual inversion)."""
    values = getattr(entry, "double", None)
    return f"embedding:{float(values().sum()):.6e}" if values else f"embedding:{entry!r:.40}"


def special_positions(tokenizer: Any, chunks: list) -> list[bool]:
    """Return which positions are start, end or padding."""
    start = getattr(tokenizer, "start_token", None)
    end = getattr(tokenizer, "end_token", None)
    flags = []
    for chunk in chunks:
        ended = False
        for position, entry in enumerate(chunk):
            id_ = entry[0]
            is_start = position == 0 and start is not None and isinstance(id_, int) and id_ == start
            is_end = isinstance(id_, int) and end is not None and id_ == end
            flags.append(ended or is_start or is_end)
            ended = ended or is_end
    return flags


def used_length(tokenizer: Any, ids: list, specials: list[bool], last_chunk: int) -> int:
    """Return the number of positions before the final padding, the end token included."""
    used = max((i for i, special in enumerate(specials) if not special), default=0) + 1
    last_start = len(ids) - last_chunk
    used = max(used, last_start + 1)
    has_end = getattr(tokenizer, "end_token", None) is not None and used < len(ids)
    return used + 1 if has_end else used


def byte_decoder() -> dict[str, int]:
    """Return the byte-level BPE alphabet's inverse (GPT-2's printable stand-ins for bytes)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    decoder = {chr(byte): byte for byte in printable}
    decoder.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return decoder


BYTES = byte_decoder()


def piece_bytes(tokenizer: Any, entry: Any) -> bytes | None:
    """Return the bytes a vocabulary entry stands for; None for vectors and unknown entries."""
    if not isinstance(entry, int):
        return None
    piece = tokenizer.inv_vocab.get(entry)
    if piece is None:
        return None
    if piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:-1], 16)])
    piece = piece.removesuffix("</w>")
    if "▁" in piece:
        return piece.replace("▁", " ").encode()
    if all(char in BYTES for char in piece):
        return bytes(BYTES[char] for char in piece)
    return piece.encode()
