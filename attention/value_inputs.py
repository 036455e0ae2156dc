"""Cross-attention whose values come of a changed prompt, its keys of the prompt itself."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..diffusion.errors import PlanError
from .kernels import replace_rows
from .rows import Role, RowLayout


def modulate(context: Tensor, modulation: Tensor) -> Tensor:
    """Return the input of the values: context * scale + shift, token by token.

    context: "rows tokens dim"; modulation: "rows-or-1 2 tokens dim", scale and shift. A context
    that the host padded by repetition gets the change repeated with it.
    Source: Li et al. 2023 (arXiv:2303.15649): only the values' input is learned.
    Raises: PlanError when the two do not fit.
    """
    tokens, dim = context.shape[1:]
    length, width = modulation.shape[2:]
    if tokens % length or dim != width:
        raise PlanError(
            f"the learned values are for prompts of {length} tokens and {width} channels, but the "
            f"model got {tokens} and {dim}: encode all prompts with the CLIP of the inversion, and "
            "train again for a source prompt of another length"
        )
    scale, shift = modulation.to(context).repeat(1, 1, tokens // length, 1).unbind(1)
    return context * scale + shift


def modulate_rows(
    value: Tensor, layout: RowLayout, modulations: Mapping[Role, Tensor]
) -> Tensor:
    """Return the input of the values with the rows of some roles changed; others are untouched.

    value: "rows tokens dim"; modulations: by role, "images-or-1 2 tokens dim".
    """
    for role in layout.roles:
        if role in modulations:
            rows = layout.slice(role)
            value = replace_rows(value, rows, modulate(value[rows], modulations[role]))
    return value


def map_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference of attention maps per image, "images".

    found, wanted: "images heads queries keys".
    Source: Li et al. 2023 (arXiv:2303.15649), attention loss; mean over heads too, as published.
    """
    return (found - wanted).square().mean((1, 2, 3))


def total_loss(parts: Mapping[object, Tensor], images: int, like: Tensor) -> Tensor:
    """Return the sum of the layers' losses per image; zeros when there are none."""
    return sum(parts.values(), torch.zeros(images, device=like.device))
