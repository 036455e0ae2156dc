"""The drawn scenes that come with the pack: a picture, what it shows, and one edit of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..evaluation.scenes import (
    Background,
    Scene,
    SceneObject,
    add_object,
    caption,
    edit_scene,
    render,
)


@dataclass(frozen=True)
class DemoScene:
    """A scene before and after an edit; exact, because both are drawn from a description."""

    source: Scene
    target: Scene

    @property
    def prompts(self) -> tuple[str, str]:
        """What the picture shows, and what it should show."""
        return caption(self.source), caption(self.target)

    @cached_property
    def image(self) -> np.ndarray:
        """The picture before the edit, uint8 "128 128 3"."""
        return render(self.source)

    @cached_property
    def exact(self) -> np.ndarray:
        """The picture a perfect edit gives, uint8 "128 128 3"."""
        return render(self.target)

    @property
    def changed(self) -> np.ndarray:
        """Where the two differ, bool "128 128"."""
        return (self.image != self.exact).any(-1)


_PAIR = Scene(
    Background("blue", "striped"),
    (SceneObject("circle", "red", 36, 62, 22), SceneObject("star", "yellow", 94, 66, 22)),
)
_HEART = Scene(Background("white", "plain"), (SceneObject("heart", "purple", 42, 64, 24),))
_SQUARE = Scene(Background("pink", "plain"), (SceneObject("square", "green", 64, 62, 27),))
_RING = Scene(Background("green", "plain"), (SceneObject("ring", "white", 36, 64, 22),))

SCENES: dict[str, DemoScene] = {
    "colour": DemoScene(_PAIR, edit_scene(_PAIR, "colour", "green", 0)),
    "shape": DemoScene(_HEART, edit_scene(_HEART, "shape", "star")),
    "background": DemoScene(_SQUARE, edit_scene(_SQUARE, "background", "yellow")),
    "pattern": DemoScene(_SQUARE, edit_scene(_SQUARE, "pattern", "checkered")),
    "more words": DemoScene(_RING, add_object(_RING, SceneObject("star", "red", 92, 64, 22))),
}
"""By what their edit changes; names are saved in workflows, so they stay."""


def as_image(picture: np.ndarray) -> Tensor:
    """Turn a picture, uint8 "height width 3", into a host IMAGE, "1 height width 3" in [0, 1]."""
    return torch.from_numpy(picture.astype(np.float32) / 255)[None]


def as_mask(where: np.ndarray) -> Tensor:
    """Turn a bool "height width" into a host MASK, "1 height width" in {0, 1}."""
    return torch.from_numpy(where.astype(np.float32))[None]
