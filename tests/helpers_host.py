"""Small real host models for tests: the golden UNet, and random UNets of the host's classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def make_inference_tensors(model: Any) -> Any:
    """Replace a model's weights by inference tensors, as the server's loaders make them."""
    with torch.inference_mode():
        for module in model.model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        weight = isinstance(tensor, torch.nn.Parameter)
                        copy = tensor.detach().clone()
                        table[name] = torch.nn.Parameter(copy) if weight else copy
    return model


def make_unet_model(
    unet_config: dict,
    config_class: str = "SD15",
    seed: int = 0,
    weights: torch.dtype = torch.float32,
) -> Any:
    """Return a ModelPatcher around a random UNet built by the host from a config (CPU).

    weights: their dtype; the network computes in fp32, or in fp64 where they are fp64.
    """
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    class Config(getattr(comfy.supported_models, config_class)):
        unet_extra_config: dict = {}  # noqa: RUF012

    config = Config(dict(unet_config))
    computes_in_theirs = weights in (torch.float32, torch.float64)
    config.set_inference_dtype(weights, None if computes_in_theirs else torch.float32)
    with torch.inference_mode(False):
        model = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.diffusion_model.parameters():
                scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(noise if parameter.ndim > 1 else noise + 0.5)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def cancelling_at(number: int) -> Callable[[], None]:
    """Return a check for interruption that is cancelled by the user the n-th time it looks."""
    import comfy.model_management as management

    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == number:
            management.interrupt_current_processing(True)
        management.throw_exception_if_processing_interrupted()

    return check


def load_tiny3(golden_dir: Path) -> Any:
    """Return the golden tests' UNet as a ModelPatcher."""
    from safetensors.torch import load_file

    weights = golden_dir / "weights"
    config = json.loads((weights / "tiny3_comfy_unet_config.json").read_text())
    model = make_unet_model(config)
    state = {k: v.float() for k, v in load_file(weights / "tiny3_unet_comfy.safetensors").items()}
    with torch.no_grad():
        model.model.diffusion_model.load_state_dict(state)
    return model


def conditioning(embedding: torch.Tensor) -> list:
    """Wrap a text embedding [batch tokens dim] as the host's CONDITIONING."""
    return [[embedding, {}]]


class TokenizerOnly:
    """A CLIP object reduced to its real tokenizer (Stable Diffusion 1's byte-pair encoding)."""

    def __init__(self) -> None:
        import comfy.sd1_clip

        self.tokenizer = comfy.sd1_clip.SD1Tokenizer()

    def tokenize(self, text: str) -> dict:
        return self.tokenizer.tokenize_with_weights(text)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square difference."""
    return float((a.double() - b.double()).pow(2).mean().sqrt())


SMALL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1, "num_heads": 4,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 64,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False, "dtype": "torch.float32",
}  # fmt: skip
"""Stable Diffusion's architecture with two levels: 7 self- and 7 cross-attention layers."""


SD_LIKE = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "context_dim": 48,
    "legacy": False,
}
"""A random Stable Diffusion of three levels: 2 + 1 + 4 attention layers."""

SDXL_LIKE = {
    **SD_LIKE,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 3],
    "transformer_depth_output": [0, 0, 3, 3],
    "transformer_depth_middle": 2,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_linear_in_transformer": True,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "context_dim": 64,
}
"""A random SDXL: no attention at the finest level, several layers in a block, a pooled vector."""


def words_prompt(text: str, length: int = 77, repeats: int = 1) -> Any:
    """Return a TokenizedPrompt in which every word is one token; `repeats` chunks of `length`."""
    from retrace.attention.tokens import Token, TokenizedPrompt

    tokens, at = [Token(49406)], 0
    for word in text.split(" "):
        tokens.append(Token(sum(word.encode()) * 7 % 40000, at, at + len(word.encode())))
        at += len(word.encode()) + 1
    used = len(tokens) + 1
    tokens += [Token(49407)] * (length * repeats - len(tokens))
    return TokenizedPrompt(text, tuple(tokens), used)
