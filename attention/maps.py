"""Maps of words over the image, from recorded queries and keys. No full map is built."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.errors import PlanError, TokenMapError
from .kernels import Attention
from .probes import read_columns
from .sites import Site, nearest_grid, select_sites
from .store import AttentionStore, Slot
from .tokens import TokenizedPrompt
from .windows import Window, check_window, window_steps

PUBLISHED_DOWNSAMPLE = 4
"""The papers look at the layers of 16 x 16 image tokens, for latents of 64 x 64."""


def word_maps(
    store: AttentionStore,
    prompt: TokenizedPrompt,
    words: Sequence[str],
    *,
    window: Window = (0.0, 1.0),
    layers: str = "",
    device: torch.device | str | None = None,
) -> Tensor:
    """Return how much each image token looks at each word: "images words height width".

    words: of the source prompt; a word's tokens are added up. window: steps, [start, end) as
      fractions, 0 the noisiest. layers: as in `select_sites`; empty for the published group.
    Mean over heads, layers and steps, at the finest of the layers' grids; float32, on the CPU.
    Source: Hertz et al. 2022 (arXiv:2208.01626), Fig. 4; maps of other resolutions are resized
    bilinearly, and columns are read out as values (see `probes`).
    Raises: PlanError when the store holds no such layers or steps, TokenMapError for a word that
    is not in the prompt.
    """
    spec = store.spec
    sites = viewed_sites(store, layers)
    inside = window_steps(check_window("steps", window), spec.total_steps)
    steps = [step for step in spec.steps if step in inside]
    if not steps:
        raise PlanError(
            f"the attention store holds steps {spec.steps[0] + 1} to {spec.steps[-1] + 1} of "
            f"{spec.total_steps}, none of which lies in the window {window[0]:g} to {window[1]:g}"
        )
    columns = word_columns(prompt, words, spec.tokens)
    finest = max((spec.grid(site) for site in sites), key=prod)
    total = torch.zeros(spec.images, len(words), *finest)
    for site in sites:
        maps = site_maps(store, site, steps, columns, device)
        total += F.interpolate(maps, size=finest, mode="bilinear", align_corners=False)
    return total / len(sites)


def site_maps(
    store: AttentionStore,
    site: Site,
    steps: Sequence[int],
    columns: Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return one layer's mean over steps, "images words height width". columns: "tokens words"."""
    heads, images = store.spec.shape(site).heads, store.spec.images
    like = torch.empty(0, device=device)  # float32
    key = store.read(Slot("key", site), steps[0], like)
    attention = fused_attention(heads)
    total: Tensor | float = 0.0
    for step in steps:
        query = store.read(Slot("query", site), step, like)
        total = total + read_columns(
            attention, query, key, columns.to(like.device).expand(images, -1, -1), heads
        )
    mean = (total / len(steps)).to("cpu").transpose(1, 2)  # [images words pixels]
    return mean.unflatten(2, store.spec.grid(site))


def fused_attention(heads: int) -> Attention:
    """Return torch's own fused attention on "rows tokens heads*dim"."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    return attention


def viewed_sites(store: AttentionStore, layers: str) -> tuple[Site, ...]:
    """Return the recorded cross-attention layers that a text names.

    Raises: PlanError if none was recorded, BlockSelectionError if the text matches none.
    """
    cross = tuple(site for site, _ in store.spec.sites if site.kind == "cross")
    if not cross:
        raise PlanError(
            "this attention store holds self-attention only, which has no words; capture the sites "
            "'cross' or 'all'"
        )
    if layers.strip().lower() == "all":
        return cross
    if layers.strip():
        return select_sites(cross, "cross", layers)
    group = nearest_grid(cross, PUBLISHED_DOWNSAMPLE)
    return tuple(site for site in cross if site in group)


def word_columns(prompt: TokenizedPrompt, words: Sequence[str], tokens: int) -> Tensor:
    """Return which tokens each word has: "tokens words" in {0, 1}."""
    if len(prompt.tokens) != tokens:
        raise TokenMapError(
            f"the attention was captured with a source prompt of {tokens} tokens, but that of the "
            f"Prompt-Pair has {len(prompt.tokens)}; connect the pair whose source was inverted"
        )
    columns = torch.zeros(tokens, len(words))
    for number, word in enumerate(words):
        columns[list(prompt.span(word)), number] = 1
    return columns


def chosen_words(prompt: TokenizedPrompt, text: str) -> list[str]:
    """Read "cat, wooden bench" into words and phrases; every word of the prompt when empty."""
    words = [word.strip() for word in text.replace("\n", ",").split(",") if word.strip()]
    if not words:
        words = list(dict.fromkeys(word.text for word in prompt.words() if word.tokens))
    for word in words:
        prompt.span(word)
    return words
