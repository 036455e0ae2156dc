"""IMAGE values, "batch height width channels" in [0, 1], as what computes on them."""

import torch
from torch import Tensor


def to_batch(picture: Tensor, count: int, device: torch.device | str) -> Tensor:
    """Return an IMAGE of one or `count` as "count 3 height width" float32, without alpha."""
    moved = picture[..., :3].detach().to(device, torch.float32).movedim(-1, 1)
    return moved.expand(count, -1, -1, -1)


def size(picture: Tensor) -> str:
    """Write the size of an IMAGE."""
    return f"{picture.shape[2]} x {picture.shape[1]}"
