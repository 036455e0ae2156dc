"""Random UNets of the host's own classes, full size or reduced, for timing without checkpoints."""

from __future__ import annotations

from typing import Any

import torch

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
}

SD = {**COMMON, "num_head_channels": -1, "use_linear_in_transformer": False,
      "adm_in_channels": None}  # fmt: skip

XL = {**COMMON, "num_heads": -1, "use_linear_in_transformer": True, "num_classes": "sequential",
      "adm_in_channels": 2816, "context_dim": 2048}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("SD15", {
        **SD, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 8,
    }),
    "sd15-reduced": ("SD15", {
        **SD, "model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 4],
        "transformer_depth": [1, 1, 1], "transformer_depth_output": [1, 1, 1, 1, 1, 1],
        "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 2,
    }),
    "sdxl": ("SDXL", {
        **XL, "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "num_head_channels": 64,
    }),
    "sdxl-reduced": ("SDXL", {
        **XL, "model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 1, 2], "transformer_depth_output": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2, "num_head_channels": 32,
    }),
}  # fmt: skip


def make_model(architecture: str, seed: int = 0, dtype: torch.dtype | None = None) -> Any:
    """Return a MODEL with random weights on the host's device.

    dtype: None for fp16 on a GPU and fp32 on the CPU.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    config_class, unet_config = ARCHITECTURES[architecture]
    device = management.get_torch_device()
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)

    class Config(getattr(comfy.supported_models, config_class)):
        unet_extra_config: dict = {}  # noqa: RUF012  the host's own name, read by its constructor

    config = Config({**unet_config, "dtype": dtype})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.diffusion_model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            noise = torch.randn(
                parameter.shape, generator=generator, device=device, dtype=dtype
            ) * scale
            parameter.copy_(noise if parameter.ndim > 1 else noise + 0.5)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def make_prompts(architecture: str) -> dict[str, list]:
    """Return random CONDITIONING of 77 tokens for source, target and negative prompt."""
    _, unet_config = ARCHITECTURES[architecture]
    generator = torch.Generator().manual_seed(1)
    prompts = {}
    for name in ("source", "target", "negative"):
        embedding = torch.randn(1, 77, unet_config["context_dim"], generator=generator)
        pooled = torch.randn(1, 1280, generator=generator)
        prompts[name] = [[embedding, {"pooled_output": pooled}]]
    return prompts
