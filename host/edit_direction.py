"""Edit directions from the host's text encoders, and their files in the host's folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.sd1_clip
import comfy.utils
import torch
from torch import Tensor

from ..attention.edit_direction import EditDirection, from_bytes, to_bytes
from ..diffusion.errors import HostError, PlanError
from .guider import check_interrupted
from .link_files import FileKind

BATCH = 32
SUFFIX = ".direction.safetensors"
FILES = FileKind("direction", SUFFIX, "retrace/cat-to-dog", PlanError, "Save-Direction")

Encoded = tuple[Tensor, Tensor | None]
"""Embeddings "sentences tokens dim" and pooled vectors "sentences dim" or None."""

list_directions = FILES.list
find_direction = FILES.find
fingerprint = FILES.fingerprint


def make_direction(clip: Any, sources: Sequence[str], targets: Sequence[str]) -> EditDirection:
    """Return the mean embedding of the target sentences minus that of the source sentences.

    Source: Parmar et al. 2023 (arXiv:2302.03027), Sec. 3.1.
    Raises: HostError without a text encoder, PlanError when the direction would be zero.
    """
    if clip is None:
        raise HostError("the CLIP input is empty: this checkpoint carries no text encoder")
    progress = comfy.utils.ProgressBar(len(sources) + len(targets))
    means = [mean_embedding(clip, sentences, progress) for sentences in (sources, targets)]
    length = max(tokens.shape[1] for tokens, _ in means)
    (from_tokens, from_pooled), (to_tokens, to_pooled) = [
        (pad_tokens(tokens, length), pooled) for tokens, pooled in means
    ]
    tokens = to_tokens - from_tokens
    if not bool(tokens.any()):
        raise PlanError(
            "source and target sentences are the same, so the direction is zero; change one"
        )
    pooled = None if from_pooled is None or to_pooled is None else to_pooled - from_pooled
    note = f"{len(sources)} sentences like {sources[0]!r} to {len(targets)} like {targets[0]!r}"
    return EditDirection(tokens, pooled, note)


def mean_embedding(
    clip: Any, sentences: Sequence[str], progress: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the mean embedding "1 tokens dim" and mean pooled vector "1 dim" or None.

    Sentences whose tokens fit one chunk of the same length are encoded many at once.
    """
    tokens = [clip.tokenize(sentence) for sentence in sentences]
    total, pooled_total = None, None
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        for embeddings, pooled in encode_part(clip, part):
            check_interrupted()
            summed = embeddings.double().sum(0, keepdim=True)
            if total is None:
                total = summed
            else:
                length = max(total.shape[1], summed.shape[1])
                total = pad_tokens(total, length) + pad_tokens(summed, length)
            if pooled is not None:
                added = pooled.double().sum(0, keepdim=True)
                pooled_total = added if pooled_total is None else pooled_total + added
        progress.update(len(part))
    mean = (total / len(sentences)).float()
    return mean, None if pooled_total is None else (pooled_total / len(sentences)).float()


def encode_part(clip: Any, tokens: Sequence[dict]) -> Iterator[Encoded]:
    """Yield the encodings of some sentences, together if the host's encoder allows it."""
    together = encode_together(clip, tokens) if len(tokens) > 1 else None
    if together is not None:
        yield together
        return
    for entry in tokens:
        check_interrupted()
        out, pooled = clip.encode_from_tokens(entry, return_pooled=True)
        yield out.cpu(), None if pooled is None else pooled.cpu()


def encode_together(clip: Any, tokens: Sequence[dict]) -> Encoded | None:
    """Return the encodings of sentences handed to the host as the chunks of one prompt.

    None where that gives something else than one by one: sentences of several chunks or of other
    lengths, encoders whose tokens do not stand side by side (SD3), a pooled vector that is not
    that of one encoder. The host returns the first chunk's pooled vector only; the others' are
    read where the encoder hands them over.
    """
    names = list(tokens[0])
    if any(len(entry[name]) != 1 for entry in tokens for name in names):
        return None
    lengths = {len(entry[name][0]) for entry in tokens for name in names}
    if len(lengths) != 1:
        return None
    prompt = {name: [entry[name][0] for entry in tokens] for name in names}
    with pooled_vectors(clip) as found:
        out, first = clip.encode_from_tokens(prompt, return_pooled=True)
    if out.shape[:2] != (1, len(tokens) * lengths.pop()):
        return None
    embeddings = out.reshape(len(tokens), -1, out.shape[-1]).cpu()
    if first is None:
        return embeddings, None
    first = first.cpu()
    for rows in found:
        if rows[:1].shape == first.shape and torch.equal(rows[:1].to(first), first):
            return embeddings, rows[: len(tokens)]  # an empty prompt may follow, for weights
    return None


@contextmanager
def pooled_vectors(clip: Any) -> Iterator[list[Tensor]]:
    """Collect the pooled vectors "chunks dim" that the encoders of a CLIP make in a with block."""
    found: list[Tensor] = []

    def keep(encoder: Any, inputs: tuple, outputs: tuple) -> None:
        if outputs[1] is not None:
            found.append(outputs[1].detach().cpu())

    modules = clip.cond_stage_model.modules()
    encoders = [module for module in modules if isinstance(module, comfy.sd1_clip.SDClipModel)]
    handles = [encoder.register_forward_hook(keep) for encoder in encoders]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def pad_tokens(embedding: Tensor, length: int) -> Tensor:
    """Return "1 tokens dim" with zeros after its last token, up to a length."""
    return torch.nn.functional.pad(embedding, (0, 0, 0, length - embedding.shape[1]))


def save_direction(direction: EditDirection, filename_prefix: str) -> str:
    """Write a direction to the host's output folder; return its name for `load_direction`."""
    return FILES.write(to_bytes(direction), filename_prefix)


def load_direction(name: str) -> EditDirection:
    """Read a direction file. Raises: PlanError if it is damaged or something else."""
    return from_bytes(FILES.find(name).read_bytes())
