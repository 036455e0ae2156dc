"""StyleDiffusion's mapping network: from the tokens of an image encoder to a change of values."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PlanError

STARTS = ("published", "identity")

NORM_EPS, SLOPE = 1e-5, 0.01
"""torch's defaults of batch norm and leaky ReLU, as published."""


class NetworkSize(NamedTuple):
    """How many tokens come in (of the image) and how many are changed (of the prompt)."""

    image_tokens: int
    text_tokens: int

    @property
    def width(self) -> int:
        """A scale and a shift for each token of the prompt."""
        return 2 * self.text_tokens

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return the tables of one network: weight and bias of each layer, in order."""
        width = self.width
        return (
            (width, self.image_tokens), (width, 1),  # from image tokens
            (width, width), (width, 1),  # between
            (width, 1), (width, 1),  # scale and shift of the normalisation
            (width, width), (width, 1),  # to scales and shifts
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes())


def initial_parameters(
    size: NetworkSize, images: int, seed: int, start: str = "published"
) -> Tensor:
    """Return the parameters of `images` networks that start alike, "images parameters", float32.

    start: "published" draws every layer as torch does; "identity" starts the last layer at zero
      but for the scales' bias of one, so that the prompt's own values come out at first.
    Raises: PlanError for an unknown start.
    """
    if start not in STARTS:
        raise PlanError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}")
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, int], inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5

    enter, enter_bias, inner, inner_bias, scale, shift, leave, leave_bias = size.shapes()
    tables = [draw(enter, enter[1]), draw(enter_bias, enter[1])]
    tables += [draw(inner, inner[1]), draw(inner_bias, inner[1])]
    tables += [torch.ones(scale), torch.zeros(shift)]
    last = [draw(leave, leave[1]), draw(leave_bias, leave[1])]
    if start == "identity":
        last = [torch.zeros(leave), torch.zeros(leave_bias)]
        last[1][: size.text_tokens] = 1
    flat = torch.cat([table.flatten() for table in (*tables, *last)])
    return flat.expand(images, -1).clone()


def map_features(parameters: Tensor, features: Tensor, size: NetworkSize) -> Tensor:
    """Return scale and shift of every token of the prompt, "images 2 text_tokens channels".

    parameters: "images parameters", a network an image; features: "images image_tokens channels".
    Source: Li et al. 2023 (arXiv:2303.15649), layers of the published code: tokens are mixed,
    channels are not; its batch norm, always in training mode on one image, normalises each
    token over its channels. Changed: a batch has one network an image, as if each were alone.
    """
    shapes = size.shapes()
    parts = parameters.split([rows * columns for rows, columns in shapes], dim=1)
    enter, enter_bias, inner, inner_bias, scale, shift, leave, leave_bias = (
        part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)
    )
    h = torch.baddbmm(enter_bias, enter, features)  # [images 2*text_tokens channels]
    h = torch.baddbmm(inner_bias, inner, h)
    h = scale * F.layer_norm(h, h.shape[-1:], eps=NORM_EPS) + shift
    h = torch.baddbmm(leave_bias, leave, F.leaky_relu(h, SLOPE))
    return h.unflatten(1, (2, size.text_tokens))


def fit_channels(features: Tensor, channels: int) -> Tensor:
    """Return features "images tokens channels" of the prompt's width.

    The published encoder happens to be as wide as the prompt's; a wider or narrower one is turned
    into that width by one fixed orthogonal matrix, drawn from a seed of its own.
    """
    width = features.shape[-1]
    if width == channels:
        return features
    generator = torch.Generator().manual_seed(0)
    tall = torch.randn(max(width, channels), min(width, channels), generator=generator)
    basis = torch.linalg.qr(tall).Q.to(features)  # orthonormal columns
    if width > channels:
        return features @ basis
    return features @ basis.T * (channels / width) ** 0.5  # a channel's size stays what it was
