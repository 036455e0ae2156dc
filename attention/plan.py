"""What was asked of attention (EditPlan, frozen) and its resolution for one run (Control)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..diffusion.errors import PlanError
from .rules import FREE, CrossRule, KeyMask, Probe, SelfRule
from .sites import ResidualBlock, Site
from .store import AttentionStore

Halves = Mapping[str, tuple[Tensor, Tensor | None]]
"""(cond, uncond) denoised predictions by branch; uncond is None where it equals cond."""


@dataclass(frozen=True)
class RunFacts:
    """What controllers need to know of the run they are prepared for.

    steps: of the whole trajectory; start_step: the first that is run. height, width: of the
    latent. sites: every attention layer of the live model, in call order.
    latents: the trajectory's states, "steps+1 batch channels height width", clean first.
    halves: guidance halves that are evaluated; no "uncond" at guidance scale 1.
    """

    steps: int
    start_step: int
    height: int
    width: int
    images: int
    sites: tuple[Site, ...]
    latents: Tensor | None = None
    halves: tuple[str, ...] = ("cond", "uncond")

    @property
    def latent_tokens(self) -> int:
        return self.height * self.width

    def grid(self, site: Site) -> tuple[int, int]:
        """Return the rows and columns of image tokens at a site."""
        return -(-self.height // site.downsample), -(-self.width // site.downsample)

    def tokens(self, site: Site) -> int:
        rows, columns = self.grid(site)
        return rows * columns


class Control:
    """A controller resolved for one run; the defaults ask for nothing."""

    name = "control"
    blends = False

    def blend_mask(self) -> Tensor | None:
        """Return the last mask a blend used, "images height width", or None."""
        return None

    def self_rule(self, step: int, site: Site, half: str) -> SelfRule | None:
        """Return how a self-attention is fed at this step, or None to leave it."""
        return None

    def cross_rule(self, step: int, site: Site) -> CrossRule | None:
        """Return the edit of a cross-attention (conditional half) at this step, or None."""
        return None

    def residuals(self, step: int) -> frozenset[ResidualBlock]:
        """Return the residual blocks whose target rows take the source's output at this step."""
        return frozenset()

    def probe(self, step: int, site: Site) -> Probe | None:
        """Return which columns of a cross-attention's map to read at this step, or None."""
        return None

    def observe(
        self, step: int, site: Site, source: Tensor | None, target: Tensor | None
    ) -> None:
        """Take what was asked for by `probe`: "images queries columns" of both branches."""

    def masks_keys(self, site: Site) -> bool:
        """Return whether `key_mask` may ask anything of a self-attention in this run."""
        return False

    def key_mask(self, step: int, site: Site) -> KeyMask | None:
        """Return the foreground of a self-attention (both halves) at this step, or None."""
        return None

    def foregrounds(self) -> tuple[Tensor, Tensor] | None:
        """Return the foregrounds of source and target last used for `key_mask`, or None.

        "images-or-1 rows columns" each, of any size, in [0, 1].
        """
        return None

    def map_guidance(self, step: int) -> Any:
        """Return how the target is pulled to the source's maps at this step, or None."""
        return None

    def guidance(self, step: int, sigma: Tensor, halves: Halves) -> Halves:
        """Return the predictions that guidance mixes, changed as the controller asks."""
        return halves

    def after_step(
        self, step: int, sigma: Tensor, source: Tensor | None, target: Tensor
    ) -> Tensor:
        """Return the target latent after the step (blends)."""
        return target


class Controller(Protocol):
    """What a controller node puts on the model: frozen, resolved at the start of a run."""

    name: str

    def prepare(self, facts: RunFacts) -> Control: ...


@dataclass(frozen=True, eq=False)
class EditPlan:
    """The controllers on a model, in the order in which they were added; frozen.

    store: recorded attention of the source, read instead of source rows.
    """

    controllers: tuple[Controller, ...] = ()
    store: AttentionStore | None = None

    def __deepcopy__(self, memo: dict) -> "EditPlan":
        return self

    @property
    def reads_attention(self) -> bool:
        """Whether a controller acts on attention layers (proximal guidance, for one, does not)."""
        return any(getattr(controller, "on_attention", True) for controller in self.controllers)

    def with_controller(self, controller: Controller) -> "EditPlan":
        return EditPlan((*self.controllers, controller), self.store)

    def with_store(self, store: AttentionStore) -> "EditPlan":
        """Return the plan with recorded attention for all its controllers.

        Raises: PlanError if another store is there already.
        """
        if self.store is not None and self.store is not store:
            raise PlanError(
                "two controllers were given different attention stores; one run reads one store: "
                "capture what both need together"
            )
        return EditPlan(self.controllers, store)

    def prepare(self, facts: RunFacts) -> tuple[Control, ...]:
        """Resolve every controller and refuse contradictions.

        Raises: PlanError when two controllers ask different things of one layer at one step.
        """
        controls = tuple(controller.prepare(facts) for controller in self.controllers)
        for site in facts.sites:
            one_masker(controls, site)
            for step in range(facts.start_step, facts.steps):
                if site.kind != "cross":
                    for half in ("cond", "uncond"):
                        merge_self_rules(controls, step, site, half)
                if site.kind != "self":
                    merge_cross_rules(controls, step, site)
        return controls


def merge_self_rules(
    controls: tuple[Control, ...], step: int, site: Site, half: str
) -> SelfRule:
    """Return the one rule for a self-attention at a step; FREE if nobody asks for anything."""
    found = only_one(controls, lambda control: control.self_rule(step, site, half), step, site)
    return found or FREE


def merge_cross_rules(controls: tuple[Control, ...], step: int, site: Site) -> CrossRule | None:
    """Return the one rule for a cross-attention at a step, or None."""
    return only_one(controls, lambda control: control.cross_rule(step, site), step, site)


def one_masker(controls: tuple[Control, ...], site: Site) -> None:
    """Raise PlanError if two controls would mask the keys of one self-attention."""
    names = [control.name for control in controls if control.masks_keys(site)]
    if len(names) > 1:
        raise PlanError(
            f"{' and '.join(names)} both have masks for the {site.kind}-attention of layer "
            f"{site.stage}.{site.index}.{site.sub_index}; keep the masks of one of them"
        )


def only_one(controls: tuple[Control, ...], ask: Callable, step: int, site: Site):
    """Return the single answer of all controls; raise PlanError if two differ."""
    answers = [(control, ask(control)) for control in controls]
    answers = [(control, answer) for control, answer in answers if answer is not None]
    for control, answer in answers[1:]:
        first, known = answers[0]
        if isinstance(answer, CrossRule) or answer != known:
            raise PlanError(
                f"{first.name} and {control.name} both want the {site.kind}-attention of layer "
                f"{site.stage}.{site.index}.{site.sub_index} at step {step + 1}; shorten one's "
                "window or move its first layer (for Prompt-to-Prompt with MasaCtrl, set "
                "self_replace to 0)"
            )
    return answers[0][1] if answers else None
