"""What differs between versions of the host and touches a run; each with the version it is for."""

import logging
from typing import Any

import comfy.ldm.modules.attention

ATTENTION_TAKES_OPTIONS = hasattr(comfy.ldm.modules.attention, "wrap_attn")
"""Before ComfyUI 0.3.60 attention takes no options, and no pack can override it by them."""

log = logging.getLogger(__name__)


def own_call_options(model_options: dict) -> dict:
    """Return options of one model call that newer hosts run here, now, and as it is written.

    ComfyUI 0.23 and on: a model spread over several GPUs is evaluated by clones in threads, whose
    modules have none of a run's hooks; one GPU does all of it. ComfyUI 0.35 and on: its compiler
    may replay a captured call, in which Python, and so every patch, is skipped; it is turned off.
    Older hosts know neither key.
    """
    options = {key: value for key, value in model_options.items() if key != "multigpu_clones"}
    options["transformer_options"] = {
        **model_options.get("transformer_options", {}), "disable_comfy_compiler": True,
    }  # fmt: skip
    return options


def warn_of_spread(model: Any) -> None:
    """Say that a model which is spread over several GPUs is evaluated on one of them."""
    if model.get_additional_models_with_key("multigpu"):
        log.warning("Retrace evaluates this model on one GPU: its hooks are not on the clones")
