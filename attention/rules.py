"""What a controller asks of one attention layer at one step. Values only, no computation."""

from typing import NamedTuple

from torch import Tensor


class SelfRule(NamedTuple):
    """From which branch the target's rows of a self-attention take queries, keys and values.

    The papers' rules: Prompt-to-Prompt source, source, target (the source's map on the target's
    values); MasaCtrl target, source, source; Plug-and-Play source, source, target.
    source_half: the guidance half whose source rows are taken; None for the target's own half.
    """

    query: str
    key: str
    value: str
    source_half: str | None = None


FREE = SelfRule("target", "target", "target")


class CrossRule(NamedTuple):
    """Edit of the target's cross-attention, pushed onto its values.

    out = Attn(Q_s, K_s; from_source V_t) + Attn(Q_t, K_t; diag(from_target) V_t)
    from_source: "source_tokens target_tokens" or None when it is zero.
    from_target: "target_tokens" or None when it is zero.
    """

    from_source: Tensor | None
    from_target: Tensor | None


class Probe(NamedTuple):
    """Sums of token columns that a controller wants to see of one cross-attention map.

    source: "source_tokens columns", target: "target_tokens columns"; None for a map that is not
    read. A column's weights say how much of each token's map is added.
    """

    source: Tensor | None
    target: Tensor | None


class KeyMask(NamedTuple):
    """Foreground of a self-attention whose target rows see foreground and background apart.

    source: "images-or-1 keys" bool, which keys are foreground; target: "images-or-1 queries" in
    [0, 1], how much each query is.
    """

    source: Tensor
    target: Tensor
