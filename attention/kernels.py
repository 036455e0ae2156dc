"""Edited attention on the values, by whatever fused attention the caller has. No map is built."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from .rows import SOURCE_COND, TARGET_COND, Role, RowLayout
from .rules import CrossRule, KeyMask, SelfRule

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v) -> out, each "rows tokens heads*dim"; fused attention, its heads bound."""


def self_rows(layout: RowLayout, part: str, rules: dict[str, SelfRule]) -> list[int] | None:
    """Return from which row each row takes its query, key or value; None when each is its own.

    part: "query", "key" or "value". rules: by guidance half; a half without one is untouched.
    """
    rows = list(range(layout.rows))
    for role in layout.roles:
        rule = rules.get(role.half)
        if role.branch != "target" or rule is None or getattr(rule, part) == "target":
            continue
        start = layout.range(role).start
        origin = layout.range(Role(getattr(rule, part), rule.source_half or role.half)).start
        for image in range(layout.images):
            rows[start + image] = origin + image
    return None if rows == list(range(layout.rows)) else rows


def residual_rows(layout: RowLayout) -> list[int]:
    """Return from which row each row takes a residual feature: targets from the source's cond."""
    rows = list(range(layout.rows))
    for role in layout.roles:
        if role.branch == "target":
            rows[layout.slice(role)] = layout.range(SOURCE_COND)
    return rows


def take_rows(x: Tensor, rows: Sequence[int] | None) -> Tensor:
    """Return x with its rows chosen by number; x itself when there is nothing to choose."""
    if rows is None:
        return x
    return x.index_select(0, torch.tensor(rows, device=x.device))


def tile_tokens(matrix: Tensor, tokens: int, dim: int, share: bool) -> Tensor:
    """Repeat a token matrix along `dim` for a context that the host padded by repetition.

    share: divide by the number of repeats (the target's columns share one token's attention);
    sources are not divided, for their repeated keys already split it.
    Raises: PlanError when the context's length is not a multiple of the prompt's.
    """
    length = matrix.shape[dim]
    if tokens == length:
        return matrix
    if tokens % length:
        raise PlanError(
            f"the prompt has {length} tokens but the model got {tokens}; another node changed "
            "the conditioning: feed the Edit-Sampler the Prompt-Pair's own outputs"
        )
    repeats = tokens // length
    tiled = matrix.repeat(*(repeats if d == dim else 1 for d in range(matrix.ndim)))
    return tiled / repeats if share else tiled


def edit_values(
    rule: CrossRule, v: Tensor, source_tokens: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return W V and diag(w) V for the target's values; None for a term that is zero.

    v: "rows target_tokens channels"; source_tokens: length of the source's keys.
    """
    mapped = weighted = None
    if rule.from_source is not None:
        matrix = rule.from_source.to(v)
        matrix = tile_tokens(matrix, source_tokens, 0, share=False)
        matrix = tile_tokens(matrix, v.shape[1], 1, share=True)
        mapped = matrix @ v  # [rows source_tokens channels]
    if rule.from_target is not None:
        # the target's own repeated keys split its attention already: no division here
        weighted = v * tile_tokens(rule.from_target.to(v), v.shape[1], 0, share=False)[:, None]
    return mapped, weighted


def edited_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RowLayout,
    rule: CrossRule,
    attention: Attention,
    replayed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-attention of a batch in which the target's conditional rows are edited by `rule`.

    q: "rows pixels channels"; k, v: "rows tokens channels"; returned: like q.
    replayed: the source's queries and keys, "images ..." each, when its rows are not in the batch.
    Source: Hertz et al. 2022 (arXiv:2208.01626), Alg. 1 and Sec. 3.2, with the map's edit moved
    to the values: (M_s W + M_t diag(w)) V = M_s (W V) + M_t (diag(w) V).
    One call of `attention` with one row more per image only when both terms are present.
    """
    target = layout.slice(TARGET_COND)
    mapped, weighted = edit_values(rule, v[target], k.shape[1])
    if mapped is None and weighted is None:
        out = attention(q, k, v)
        out[target] = 0
        return out
    if mapped is None:
        v = replace_rows(v, target, weighted)
        return attention(q, k, v)
    if replayed is None:
        source = layout.slice(SOURCE_COND)
        replayed = q[source], k[source]
    q_in, k_in = replace_rows(q, target, replayed[0]), replace_rows(k, target, replayed[1])
    v_in = replace_rows(v, target, mapped)
    if weighted is None:
        return attention(q_in, k_in, v_in)
    out = attention(
        torch.cat([q_in, q[target]]), torch.cat([k_in, k[target]]), torch.cat([v_in, weighted])
    )
    rows = layout.rows
    return replace_rows(out[:rows], target, out[target] + out[rows:])


def replace_rows(x: Tensor, rows: slice, values: Tensor) -> Tensor:
    """Return x with some rows replaced; x is not written to."""
    return torch.cat([x[: rows.start], values.to(x.dtype), x[rows.stop :]])


def masked_self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RowLayout,
    halves: Collection[str],
    mask: KeyMask,
    attention: Attention,
) -> Tensor:
    """Self-attention whose target rows see foreground and background keys apart.

    q, k, v: "rows tokens channels"; halves: whose target rows are meant.
    Source: Cao et al. 2023 (arXiv:2304.08465), Sec. 3.3, mask-guided mutual self-attention.
    Changed: keys are left out of the call instead of masked, so any fused attention will do and
    no mask of queries x keys exists; a side without keys sees all of them, not a uniform mix.
    """
    edited = [
        list(layout.range(role))
        for role in layout.roles
        if role.branch == "target" and role.half in halves
    ]
    if not edited:
        return attention(q, k, v)
    others = sorted(set(range(layout.rows)) - {row for rows in edited for row in rows})
    out = torch.empty_like(q)
    if others:
        out[others] = attention(q[others], k[others], v[others])
    shared = len(mask.source) == 1
    for image in range(1 if shared else layout.images):
        rows = [row for half in edited for row in (half if shared else half[image : image + 1])]
        sides = []
        for side in (mask.source[image], ~mask.source[image]):
            keys = side.nonzero()[:, 0].to(k.device) if bool(side.any()) else slice(None)
            sides.append(attention(q[rows], k[rows][:, keys], v[rows][:, keys]))
        target = mask.target if len(mask.target) == 1 else mask.target[row_images(rows, layout)]
        weight = target.to(out)[:, :, None]
        out[rows] = sides[1] + weight * (sides[0] - sides[1])
    return out


def row_images(rows: Sequence[int], layout: RowLayout) -> list[int]:
    """Return the image of each row."""
    return [row % layout.images for row in rows]
