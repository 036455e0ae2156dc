"""What a controller asks of one attention layer at one step. Values only, no computation."""

from typing import NamedTuple

from torch import Tensor


class SelfRule(NamedTuple):
    """From which branch the target's rows of a self-attention take queries, keys and values.

    The papers' rules: Prompt-to-Prompt source, source, target (the source's map on the target's
    values); MasaCtrl target, source, source; Plug-and-Play source, source, target.
    """

    query: str
    key: str
    value: str


FREE = SelfRule("target", "target", "target")


class CrossRule(NamedTuple):
    """Edit of the target's cross-attention, pushed onto its values.

    out = Attn(Q_s, K_s; from_source V_t) + Attn(Q_t, K_t; diag(from_target) V_t)
    from_source: "source_tokens target_tokens" or None when it is zero.
    from_target: "target_tokens" or None when it is zero.
    """

    from_source: Tensor | None
    from_target: Tensor | None
