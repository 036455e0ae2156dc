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
    spans = locate(pieces, plain)
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


def plain_text(text: str) -> str:
    """Return a prompt as the encoder sees it: without the brackets of weights."""
    parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    joined = "".join(comfy.sd1_clip.unescape_important(part) for part, _ in parsed)
    return " ".join(joined.split())


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
