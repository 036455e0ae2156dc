"""DiT4Edit's unified attention control: Prompt-to-Prompt on words, MasaCtrl on looks, one setting.

Source: Feng et al. 2024, "DiT4Edit: Diffusion Transformer for Image Editing" (arXiv:2411.03286).
The paper published no code, thresholds or layers; `SWITCH` is what `bench dit --ablate` found best
on drawn scenes whose colours or shapes were changed. Changes of pose could not be measured there.
"""

from typing import Any

from ..diffusion.errors import PlanError
from .masactrl import MasaCtrl
from .prompt_to_prompt import PromptPair, PromptToPrompt

CROSS_REPLACE = 0.6
"""Fraction of the steps in which the source's word maps are used."""

SWITCH = 1.0
"""Fraction of the steps after which self-attention turns from the source's structure to the
target's own queries on the source's keys and values; 1 is never. The paper has a switch, but of 12
edits of colours and shapes 8 came out right at 1, 7 at 0.4 and 5 at 0.2, and less was kept.
"""

CROSS_FROM = 0.0
"""Depth, as a fraction of the layers, from which cross-attention is controlled."""

SELF_FROM = 0.5
"""Depth from which self-attention is controlled: deep blocks carry the layout."""


def unified_control(
    prompts: PromptPair,
    *,
    cross_replace: float = CROSS_REPLACE,
    switch: float = SWITCH,
    cross_from: float = CROSS_FROM,
    self_from: float = SELF_FROM,
    structure: bool = True,
    content: bool = True,
    mode: str = "auto",
    **options: Any,
) -> tuple[PromptToPrompt | MasaCtrl, ...]:
    """Return the controllers of unified control, which never ask for one layer at one step.

    cross_replace, switch, cross_from, self_from: see the constants above. structure: use the
    source's self-attention maps before the switch. content: look up the source's content after it.
    mode, options: further ones of `PromptToPrompt`.
    Raises: PlanError for fractions outside [0, 1].
    """
    fractions = {"switch": switch, "cross_from": cross_from, "self_from": self_from}
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise PlanError(f"{name} must be a fraction in [0, 1], got {value:g}")
    masa = MasaCtrl(start_step=switch, depth=(self_from, 1.0)) if content and switch < 1 else None
    if masa and not any((cross_replace, switch and structure, *options.values())):
        return (masa,)
    words = PromptToPrompt(
        prompts,
        mode,
        cross_replace=(0.0, cross_replace),
        self_replace=(0.0, switch if structure else 0.0),
        cross_depth=(cross_from, 1.0),
        self_depth=(self_from, 1.0),
        **options,
    )
    return (words, masa) if masa else (words,)
