"""Reach ComfyUI's network classes from a training script, on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


def use_host() -> None:
    """Make `import comfy` work: RETRACE_COMFYUI, or the tree that tools/host.py fetched."""
    path = os.environ.get("RETRACE_COMFYUI", str(ROOT / ".host" / "ComfyUI"))
    if path not in sys.path:
        sys.path.insert(1, path)
    if not torch.cuda.is_available():
        from comfy.cli_args import args

        args.cpu = True


class PlainOperations:
    """torch.nn layers under the names ComfyUI asks for; its own skip weight initialisation."""

    Linear = nn.Linear
    Conv2d = nn.Conv2d
    GroupNorm = nn.GroupNorm
    LayerNorm = nn.LayerNorm

    class Embedding(nn.Embedding):
        """nn.Embedding that takes the host's `out_dtype`."""

        def forward(self, tokens: torch.Tensor, out_dtype: torch.dtype | None = None):
            """Look tokens up, in `out_dtype` if given."""
            rows = super().forward(tokens)
            return rows if out_dtype is None else rows.to(out_dtype)

    @staticmethod
    def conv_nd(dims: int, *args: object, **kwargs: object) -> nn.Module:
        """Give a two-dimensional convolution."""
        if dims != 2:
            raise ValueError(f"only two dimensions are supported, not {dims}")
        return nn.Conv2d(*args, **kwargs)
