"""Tokens of an image from the host's CLIP_VISION."""

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..diffusion.errors import HostError, LatentError


def image_tokens(clip_vision: Any, image: Tensor, batch: int) -> Tensor:
    """Return every token of the encoder's last layer, float32 "batch tokens channels", on the CPU.

    image: an IMAGE, "images height width 3"; its centre square is looked at, as the host crops it.
    The layer norm that the encoder keeps for its class token goes over all tokens, as published.
    Raises: LatentError when the images are not as many as the latents, HostError when the encoder
    gives no tokens.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or 0 in image.shape:
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise LatentError(f"expected an IMAGE [images height width channels], got {got}")
    if not bool(torch.isfinite(image).all()):
        raise LatentError("the image contains NaN or Inf; load it again")
    if len(image) not in (1, batch):
        raise LatentError(
            f"there are {len(image)} images but {batch} latents in the trajectory; connect the "
            "images that were encoded and inverted"
        )
    if not hasattr(clip_vision, "encode_image"):
        raise HostError(
            f"expected a CLIP_VISION, got {type(clip_vision).__name__}; connect Load CLIP Vision"
        )
    with torch.no_grad():
        tokens = clip_vision.encode_image(image)["last_hidden_state"]
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[1] < 2:
            raise HostError(
                "this CLIP_VISION gives no tokens of the image, only a summary of it; use a CLIP "
                "vision transformer (ViT)"
            )
        tower = getattr(clip_vision.model, "vision_model", None)
        if tower is not None and not getattr(tower, "output_layernorm", True):
            device = comfy.model_management.text_encoder_device()
            tokens = tower.post_layernorm(tokens.to(device))
    tokens = tokens.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(tokens).all()):
        raise HostError("the CLIP_VISION's tokens contain NaN or Inf; run it in fp32")
    return tokens.expand(batch, -1, -1).clone()
