"""Tokenise the training captions with the host's CLIP tokenizer."""

from __future__ import annotations

import numpy as np
from retrace.demo.architecture import END_TOKEN, TEXT

from .host import use_host


def tokenise(captions: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Give row numbers "... 32" into the list of CLIP ids in use, and that list.

    The empty caption is always in it: start, then end tokens to the length of 32.
    """
    use_host()
    from comfy.sd1_clip import SDTokenizer

    length = TEXT["max_position_embeddings"]
    tokenizer = SDTokenizer(tokenizer_data={"clip_l_max_length": length})
    unique, places = np.unique(captions, return_inverse=True)
    rows = []
    for text in unique:
        batches = tokenizer.tokenize_with_weights(str(text))
        if len(batches) != 1:
            raise ValueError(f"caption longer than {length} tokens: {text!r}")
        rows.append([token for token, _ in batches[0]])
    ids = np.array(rows)
    vocabulary = sorted({*ids.ravel().tolist(), END_TOKEN})
    return np.searchsorted(vocabulary, ids)[places].reshape(*captions.shape, length), vocabulary
