"""Edit directions from the host's text encoders, and their files in the host's folders."""

from collections.abc import Sequence
from typing import Any

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

    One encoder whose sentences fit one chunk each takes many at once; several encoders (SDXL) have
    a pooled vector that the host returns for one sentence at a time only.
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
                pooled_total = pooled.double() + (0 if pooled_total is None else pooled_total)
        progress.update(len(part))
    mean = (total / len(sentences)).float()
    return mean, None if pooled_total is None else (pooled_total / len(sentences)).float()


def encode_part(clip: Any, tokens: Sequence[dict]):
    """Yield (embeddings "sentences tokens dim", pooled "1 dim" or None) of some sentences."""
    (name, *others) = tokens[0]
    chunks = [entry[name] for entry in tokens]
    alike = len({len(chunk) for entry in chunks for chunk in entry}) == 1
    if not others and alike and all(len(entry) == 1 for entry in chunks):
        together = {name: [entry[0] for entry in chunks]}
        out = clip.encode_from_tokens(together)  # chunks come back end to end
        yield out.reshape(len(chunks), -1, out.shape[-1]).cpu(), None
        return
    for entry in tokens:
        check_interrupted()
        out, pooled = clip.encode_from_tokens(entry, return_pooled=True)
        yield out.cpu(), None if pooled is None else pooled.cpu()


def pad_tokens(embedding: Tensor, length: int) -> Tensor:
    """Return "1 tokens dim" with zeros after its last token, up to a length."""
    return torch.nn.functional.pad(embedding, (0, 0, 0, length - embedding.shape[1]))


def save_direction(direction: EditDirection, filename_prefix: str) -> str:
    """Write a direction to the host's output folder; return its name for `load_direction`."""
    return FILES.write(to_bytes(direction), filename_prefix)


def load_direction(name: str) -> EditDirection:
    """Read a direction file. Raises: PlanError if it is damaged or something else."""
    return from_bytes(FILES.find(name).read_bytes())
