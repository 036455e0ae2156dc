"""Parameters that all methods of a comparison share."""

from dataclasses import dataclass

from ..attention.dit4edit import CROSS_FROM, SELF_FROM


@dataclass(frozen=True)
class Settings:
    """One set of parameters for every method that is compared.

    cross, self_: fractions of the steps of Prompt-to-Prompt's windows. blend: LocalBlend's
    threshold. self_tokens: P2P's limit on self-attention layers, None for the scaled one. amount:
    of XAttn-Guidance. cross_from, self_from: depths of unified control, whose switch is `self_`.
    """

    steps: int = 50
    cfg: float = 4.0
    cross: float = 0.6
    self_: float = 0.4
    blend: float = 0.3
    self_tokens: int | None = None
    amount: float = 0.1
    cross_from: float = CROSS_FROM
    self_from: float = SELF_FROM


KEEPING = Settings(cfg=3.0, cross=0.4, self_=0.8, blend=0.5, self_tokens=32 * 32)
"""What keeps much of the source while a changed word still shows, for P2P with LocalBlend.

Found by hand on scenes apart from the held-out ones; docs/benchmarks.md has what was tried.
"""
