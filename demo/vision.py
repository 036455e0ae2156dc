"""A small image encoder of the host's own CLIP class, with fixed random weights.

ComfyUI is imported when `load_vision` is called, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CONFIG = Path(__file__).parent / "vision.json"

SEED = 0


def load_vision() -> Any:
    """Return a CLIP_VISION that was never trained: 65 tokens of 128 channels, the prompt's width.

    Random weights tell pictures and places apart, which is all that a network trained on top of
    them needs; they know nothing of what a picture shows.
    """
    # see bundle.load_demo: weights that can be used outside inference mode, global seeds untouched
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        from comfy.clip_vision import ClipVisionModel

        vision = ClipVisionModel(str(CONFIG))
        generator = torch.Generator().manual_seed(SEED)
        for name, weight in sorted(vision.model.named_parameters()):
            weight.requires_grad_(False)
            if weight.ndim > 1 or "class_embedding" in name:
                scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
        return vision
