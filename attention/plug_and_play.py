"""Plug-and-Play diffusion features (Tumanyan et al. 2022, arXiv:2211.12572)."""

from dataclasses import dataclass

from ..diffusion.errors import BlockSelectionError, PlanError
from .plan import Control, RunFacts
from .rules import SelfRule
from .sites import ResidualBlock, Site
from .windows import check_window, window_steps

INJECT = {
    "cond": SelfRule("source", "source", "target"),
    "uncond": SelfRule("source", "source", "target", source_half="cond"),
}


@dataclass(frozen=True)
class PlugAndPlay:
    """What a PnP-Controller asks for; frozen.

    feature_fraction: of the steps, from the noisy end, in which the decoder's residual features
      are the source's (published 0.8). attention_fraction: the same for its self-attention maps
      (published 0.5). 0 turns either off.
    """

    feature_fraction: float = 0.8
    attention_fraction: float = 0.5

    name = "PnP-Controller"

    def __post_init__(self) -> None:
        check_window("feature_fraction", (0.0, self.feature_fraction))
        check_window("attention_fraction", (0.0, self.attention_fraction))

    def prepare(self, facts: RunFacts) -> "PreparedPlugAndPlay":
        """Resolve windows and layers for one run.

        Raises: PlanError when nothing would be done, BlockSelectionError for a model without a
        decoder of at least two attention blocks.
        """
        features = window_steps((0.0, self.feature_fraction), facts.steps)
        attention = window_steps((0.0, self.attention_fraction), facts.steps)
        if max(features.stop, attention.stop) <= facts.start_step:
            raise PlanError(
                "PnP-Controller would do nothing: neither window covers a step (steps "
                f"{facts.start_step} to {facts.steps - 1} are run); raise feature_fraction or "
                "attention_fraction, or remove the node"
            )
        sites = injected_sites(facts.sites)
        return PreparedPlugAndPlay(sites, injected_block(facts.sites), attention, features)


def injected_sites(sites: tuple[Site, ...]) -> frozenset[Site]:
    """Return the decoder's self-attention layers but for those of its first attention block.

    On Stable Diffusion 1 and 2: output blocks 4 to 11, the published choice. The paper names no
    layers for other UNets; the rule is the same there. Raises: BlockSelectionError.
    """
    decoder = [site for site in sites if site.kind == "self" and site.stage == "output"]
    first = min((site.index for site in decoder), default=0)
    chosen = frozenset(site for site in decoder if site.index > first)
    if not chosen:
        raise BlockSelectionError(
            "PnP-Controller needs a UNet whose decoder has self-attention in at least two blocks; "
            f"this model has it in {len({site.index for site in decoder})}"
        )
    return chosen


def injected_block(sites: tuple[Site, ...]) -> ResidualBlock:
    """Return the residual block whose features are injected. Raises: BlockSelectionError."""
    return ResidualBlock("output", min(site.index for site in injected_sites(sites)))


class PreparedPlugAndPlay(Control):
    """Plug-and-Play resolved for one run.

    Source: Tumanyan et al. 2022, Alg. 1: features f^4 and the attention of the source row are
    used by the target in both guidance halves. The residual block injected is the
    first of the injected attention layers' blocks (output block 4 on SD1.x), before its skip.
    One source row, under the source prompt of the inversion, serves both halves; the published
    code inverts with, or evaluates it under, an empty prompt.
    """

    name = PlugAndPlay.name

    def __init__(
        self,
        sites: frozenset[Site],
        block: ResidualBlock,
        attention_steps: range,
        feature_steps: range,
    ) -> None:
        self.sites, self.block = sites, block
        self.attention_steps, self.feature_steps = attention_steps, feature_steps

    def self_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        return INJECT[half] if step in self.attention_steps and site in self.sites else None

    def residuals(self, step: int) -> frozenset[ResidualBlock]:
        return frozenset([self.block]) if step in self.feature_steps else frozenset()
