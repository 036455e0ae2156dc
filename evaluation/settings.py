"""Parameters that all methods of a comparison share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """One set of parameters for every method that is compared.

    cross, self_: fractions of the steps of Prompt-to-Prompt's windows. blend: LocalBlend's
    threshold. amount: of XAttn-Guidance.
    """

    steps: int = 50
    cfg: float = 4.0
    cross: float = 0.6
    self_: float = 0.4
    blend: float = 0.3
    amount: float = 0.1
