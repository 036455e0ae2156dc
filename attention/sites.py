"""Addresses of attention layers, read from the live model by the host room, and their selection."""

from collections.abc import Sequence
from typing import NamedTuple


class Site(NamedTuple):
    """One attention layer.

    kind: "self", "cross" or "joint". stage: "input", "middle", "output" of a UNet, "block" of a
    transformer. index, sub_index: as the host addresses them. order: position among the layers
    of its kind, in call order. downsample: image tokens per side are latent side / downsample.
    """

    kind: str
    stage: str
    index: int
    sub_index: int
    order: int
    downsample: int

    @property
    def address(self) -> tuple[str, int, int]:
        return (self.stage, self.index, self.sub_index)

    def __str__(self) -> str:
        return f"{self.kind} {self.stage}.{self.index}.{self.sub_index}"


def count(sites: Sequence[Site], kind: str) -> int:
    """Return how many layers of a kind there are."""
    return sum(site.kind == kind for site in sites)
