"""What comes in on a link or in a widget is what the node was promised, or it is told."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.edit_direction import EditDirection
from ..attention.prompt_to_prompt import PromptPair
from ..attention.store import AttentionStore
from ..diffusion.errors import HostError
from ..diffusion.trajectory import Trajectory


class Kind(NamedTuple):
    """accepts: whether a value is of this type; what: its name for people; source: its node."""

    accepts: Callable[[Any], bool]
    what: str
    source: str


def has(*names: str) -> Callable[[Any], bool]:
    """Return a test for objects with these attributes: a host's classes change, these stay."""
    return lambda value: all(hasattr(value, name) for name in names)


def of(kind: type) -> Callable[[Any], bool]:
    """Return a test for values of a class."""
    return lambda value: isinstance(value, kind)


def is_picture(value: Any) -> bool:
    """Tell whether this is an IMAGE "batch height width 3 (or more)" with something in it."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] >= 3 and filled(value)


def is_mask(value: Any) -> bool:
    """Tell whether this is a MASK "batch height width" or "height width" with something in it."""
    return isinstance(value, Tensor) and value.ndim in (2, 3) and filled(value)


def filled(value: Tensor) -> bool:
    """Tell whether a tensor has elements and all of them are finite."""
    return value.numel() > 0 and bool(torch.isfinite(value).all())


def is_conditioning(value: Any) -> bool:
    """Tell whether this is a CONDITIONING: pairs of an embedding without NaN and its options."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], Tensor)
        and pair[0].ndim == 3
        and filled(pair[0])
        and isinstance(pair[1], dict)
        for pair in value
    )


KINDS = {
    "MODEL": Kind(has("model_options", "clone"), "a model", "a checkpoint loader or a controller"),
    "CLIP": Kind(has("tokenize"), "a text encoder", "a checkpoint loader"),
    "VAE": Kind(has("decode", "encode"), "a VAE", "a checkpoint loader or Load VAE"),
    "LATENT": Kind(lambda v: isinstance(v, dict) and "samples" in v, "a latent", "VAE Encode"),
    "CONDITIONING": Kind(
        is_conditioning, "encoded text free of NaN and Inf", "CLIP Text Encode or Prompt-Pair"
    ),
    "IMAGE": Kind(is_picture, "pictures [batch, height, width, 3] free of NaN", "Load Image"),
    "MASK": Kind(is_mask, "a mask [batch, height, width] free of NaN", "Load Image (as Mask)"),
    "SIGMAS": Kind(of(Tensor), "noise levels", "a scheduler node"),
    "RETRACE_TRAJECTORY": Kind(of(Trajectory), "a trajectory", "an Invert node"),
    "RETRACE_PROMPTS": Kind(of(PromptPair), "a pair of prompts", "Prompt-Pair"),
    "RETRACE_ATTENTION": Kind(of(AttentionStore), "recorded attention", "Attention-Capture"),
    "RETRACE_DIRECTION": Kind(
        lambda v: isinstance(v, EditDirection) and filled(v.tokens),
        "an edit direction free of NaN and Inf",
        "Edit-Direction",
    ),
    "FLOAT": Kind(
        lambda v: isinstance(v, int | float) and math.isfinite(v), "a finite number", "its widget"
    ),
}


def check_given(name: str, io_type: str, value: Any) -> None:
    """Raise HostError if what an input was given is not of its link type.

    The host checks the type that a link declares, not the value, and nothing where a program that
    drives it writes a value in a link's place.
    """
    kind = KINDS.get(io_type)
    if kind and not kind.accepts(value):
        raise HostError(
            f"{name}: expected {kind.what}, got {describe_value(value)}; connect {kind.source}"
            if io_type != "FLOAT"
            else f"{name}: expected {kind.what}, got {value!r}"
        )


def check_choice(name: str, options: list, value: Any) -> None:
    """Raise HostError if a choice is none of those that its input offers."""
    if value not in options:
        offered = ", ".join(repr(option) for option in options[:12])
        raise HostError(f"{name}: expected one of {offered}, got {describe_value(value)}")


def check_width(model: Any, texts: list[tuple[str, list]]) -> None:
    """Raise HostError if encoded text does not fit the model's cross-attention.

    texts: (name of the input, CONDITIONING). Only models that state their width are asked.
    """
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    width = config.get("context_dim")
    for name, conditioning in texts if isinstance(width, int) else ():
        for embedding, _ in conditioning:
            if embedding.shape[-1] != width:
                raise HostError(
                    f"{name}: this text has {embedding.shape[-1]} features a token but the model "
                    f"reads {width}; encode it with the CLIP of the same checkpoint"
                )


def describe_value(value: Any) -> str:
    """Say in a few words what a value is."""
    if value is None:
        return "nothing"
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, Tensor):
        spoilt = "" if value.numel() == 0 or filled(value) else " with NaN or Inf"
        return f"a tensor {list(value.shape)}{spoilt}"
    if isinstance(value, str | int | float | bool):
        return f"{str(value)[:40]!r}"
    return f"a {type(value).__name__}"
