"""MasaCtrl (Cao et al. 2023, arXiv:2304.08465): mutual self-attention, plain or with masks."""

from dataclasses import dataclass

from torch import Tensor

from ..diffusion.errors import BlockSelectionError, LatentError, PlanError
from .key_masks import AutoMask, MaskReader, fit_token_mask, make_mask
from .plan import Control, RunFacts
from .rules import KeyMask, Probe, SelfRule
from .sites import Site, count

MUTUAL = SelfRule("target", "source", "source")

PUBLISHED_LAYER, PUBLISHED_LAYERS = 10, 16
"""The first mutual layer and the number of self-attention layers in the paper's UNet (SD1.x)."""

AUTO_LAYER = -1


@dataclass(frozen=True, eq=False)
class MasaCtrl:
    """What a MasaCtrl-Controller asks for; frozen.

    start_step: the first mutual step: a step number when 1 or more (published: 4 of 50), a
      fraction of the steps when less.
    start_layer: the first mutual self-attention layer in call order; `AUTO_LAYER` takes the
      published 10 of 16 in proportion.
    mask_source, mask_target: "images-or-1 height width" in [0, 1], the foreground; one alone
      stands for both. auto: read the foregrounds from cross-attention instead.
    """

    start_step: float = 4
    start_layer: int = AUTO_LAYER
    mask_source: Tensor | None = None
    mask_target: Tensor | None = None
    auto: AutoMask | None = None

    name = "MasaCtrl-Controller"

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.start_layer < AUTO_LAYER:
            raise PlanError(
                f"MasaCtrl-Controller: start_step must not be negative and start_layer not below "
                f"{AUTO_LAYER} (automatic), got {self.start_step} and {self.start_layer}"
            )
        for mask in (self.mask_source, self.mask_target):
            make_mask(mask)
        if self.auto is not None and (self.mask_source is not None or self.mask_target is not None):
            raise PlanError(
                "MasaCtrl-Controller has masks and words to make masks from; disconnect the masks "
                "or clear the words"
            )

    def __deepcopy__(self, memo: dict) -> "MasaCtrl":
        return self

    def prepare(self, facts: RunFacts) -> "PreparedMasaCtrl":
        """Resolve step and layer for one run.

        Raises: PlanError when no step is left, BlockSelectionError for a layer there is not.
        """
        step = self.first_step(facts.steps)
        if max(step, facts.start_step) >= facts.steps:
            raise PlanError(
                f"MasaCtrl-Controller would do nothing: start_step {self.start_step:g} is step "
                f"{step} but the last of this run is {facts.steps - 1}; lower it"
            )
        layer = self.first_layer(count(facts.sites, "self"))
        sites = frozenset(s for s in facts.sites if s.kind == "self" and s.order >= layer)
        reader = None if self.auto is None else self.auto.prepare(facts)
        return PreparedMasaCtrl(facts, step, sites, self.masks(facts.images), reader)

    def masks(self, images: int) -> tuple[Tensor, Tensor] | None:
        """Return the foregrounds of source and target, "images-or-1 height width", or None.

        Raises: LatentError for a mask of another number of images.
        """
        source, target = make_mask(self.mask_source), make_mask(self.mask_target)
        if source is None and target is None:
            return None
        for mask in (source, target):
            if mask is not None and len(mask) not in (1, images):
                raise LatentError(
                    f"a foreground mask has {len(mask)} images but the trajectory {images}; give "
                    "one or as many"
                )
        return (target if source is None else source), (source if target is None else target)

    def first_step(self, steps: int) -> int:
        """Return the first mutual step of a run."""
        return int(self.start_step if self.start_step >= 1 else self.start_step * steps)

    def first_layer(self, layers: int) -> int:
        """Return the first mutual layer of a model with so many self-attention layers."""
        auto = round(PUBLISHED_LAYER * layers / PUBLISHED_LAYERS)
        if self.start_layer == AUTO_LAYER and layers:
            return auto
        if self.start_layer >= layers or not layers:
            raise BlockSelectionError(
                f"MasaCtrl-Controller: start_layer {self.start_layer}, but this model has {layers} "
                f"self-attention layers (0 to {layers - 1}); the published {PUBLISHED_LAYER} of "
                f"{PUBLISHED_LAYERS} is {auto} here, and {AUTO_LAYER} chooses it"
            )
        return self.start_layer


class PreparedMasaCtrl(Control):
    """MasaCtrl resolved for one run: target queries, source keys and values, in both halves.

    Source: Cao et al. 2023, Alg. 1; with masks Sec. 3.3 (mask-guided mutual self-attention).
    """

    name = MasaCtrl.name

    def __init__(
        self,
        facts: RunFacts,
        start_step: int,
        sites: frozenset[Site],
        masks: tuple[Tensor, Tensor] | None,
        reader: MaskReader | None,
    ) -> None:
        self.facts, self.start_step, self.sites = facts, start_step, sites
        self.masks, self.reader = masks, reader
        self._fitted: dict[tuple[int, int], KeyMask] = {}

    def self_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        return MUTUAL if step >= self.start_step and site in self.sites else None

    def probe(self, step: int, site: Site) -> Probe | None:
        if self.reader is None or step < self.start_step or site not in self.reader.sites:
            return None
        return self.reader.probe

    def observe(
        self, step: int, site: Site, source: Tensor | None, target: Tensor | None
    ) -> None:
        self.reader.observe(step, source, target)

    def masks_keys(self, site: Site) -> bool:
        return site in self.sites and (self.masks is not None or self.reader is not None)

    def foregrounds(self) -> tuple[Tensor, Tensor] | None:
        return self.masks if self.reader is None else self.reader.foregrounds()

    def key_mask(self, step: int, site: Site) -> KeyMask | None:
        if step < self.start_step or not self.masks_keys(site):
            return None
        grid = self.facts.grid(site)
        if self.reader is not None:
            return self.reader.key_mask(step, grid)
        if grid not in self._fitted:
            source, target = (fit_token_mask(mask, grid) for mask in self.masks)
            self._fitted[grid] = KeyMask(source >= 0.5, target)
        return self._fitted[grid]
