"""Addresses of attention layers, read from the live model by the host room, and their selection."""

from collections.abc import Sequence
from typing import NamedTuple

from ..diffusion.errors import BlockSelectionError


class Site(NamedTuple):
    """One attention layer.

    kind: "self", "cross" or "joint". stage: "input", "middle", "output" of a UNet, "block" of a
    transformer. index, sub_index: as the host addresses them. order: position among the layers
    of its kind, in call order. downsample: image tokens per side are latent side / downsample (a
    transformer's patch size).
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


class ResidualBlock(NamedTuple):
    """The residual branch of one convolutional block of a UNet, as the host addresses it."""

    stage: str
    index: int

    def __str__(self) -> str:
        return f"residual {self.stage}.{self.index}"


def count(sites: Sequence[Site], kind: str) -> int:
    """Return how many layers of a kind there are."""
    return sum(site.kind == kind for site in sites)


def is_transformer(sites: Sequence[Site]) -> bool:
    """Whether the layers are those of a diffusion transformer: blocks all alike, one grid."""
    return bool(sites) and all(site.stage == "block" for site in sites)


def sites_at_depth(
    sites: Sequence[Site], kind: str, depth: tuple[float, float]
) -> frozenset[Site]:
    """Return the layers of a kind in a part of the network, [start, end) as fractions of them.

    0 is the first layer in call order; bounds are rounded to whole layers.
    Raises: BlockSelectionError when there is none.
    """
    layers = count(sites, kind)
    first, last = (round(fraction * layers) for fraction in depth)
    chosen = frozenset(s for s in sites if s.kind == kind and first <= s.order < last)
    if not chosen and depth != (0.0, 1.0):
        raise BlockSelectionError(
            f"a depth of {depth[0]:g} to {depth[1]:g} holds none of this model's {layers} "
            f"{kind}-attention layers; widen it"
        )
    return chosen


def nearest_grid(sites: Sequence[Site], downsample: float) -> frozenset[Site]:
    """Return the encoder's and decoder's cross-attention layers whose grid is nearest to 1/n.

    The middle block is left out, as in the published codes, unless there is nothing else. Of two
    equally near grids the finer one is taken.
    """
    cross = [site for site in sites if site.kind == "cross"]
    cross = [site for site in cross if site.stage != "middle"] or cross
    if not cross:
        return frozenset()
    best = min(
        {site.downsample for site in cross},
        key=lambda down: (max(down, downsample) / min(down, downsample), down),
    )
    return frozenset(site for site in cross if site.downsample == best)


def select_sites(sites: Sequence[Site], kind: str = "all", text: str = "") -> tuple[Site, ...]:
    """Return the layers of a kind ("all", "self", "cross") that a text names.

    text: terms separated by commas, empty for all: addresses or their beginnings ("output",
      "output.5", "middle.0.0"), or numbers in call order ("10", "10-15").
    Raises: BlockSelectionError naming what there is.
    """
    wanted = [site for site in sites if kind in ("all", site.kind)]
    terms = [term.strip().lower() for term in text.split(",") if term.strip()]
    found: set[Site] = set()
    for term in terms:
        matches = {site for site in wanted if matches_term(site, term)}
        if not matches:
            raise BlockSelectionError(
                f"no attention layer matches {term!r}; this model's {kind} layers are "
                f"{describe_sites(wanted)}"
            )
        found |= matches
    selected = tuple(site for site in wanted if not terms or site in found)
    if not selected:
        raise BlockSelectionError(f"this model has no {kind}-attention layers to select from")
    return selected


def matches_term(site: Site, term: str) -> bool:
    """Whether a layer is meant by one term of a selection."""
    first, dash, last = term.partition("-")
    if first.isdigit() and (last.isdigit() if dash else True):
        return int(first) <= site.order <= int(last if dash else first)
    address = f"{site.stage}.{site.index}.{site.sub_index}."
    return address.startswith(f"{term}.")


def describe_sites(sites: Sequence[Site]) -> str:
    """List layers for people: addresses, and the range of their numbers."""
    places = dict.fromkeys(f"{site.stage}.{site.index}" for site in sites)
    last = max((site.order for site in sites), default=-1)
    return f"{', '.join(places) or 'none'} (numbers 0 to {last} in call order)"
