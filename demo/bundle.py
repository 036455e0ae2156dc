"""Build the demo models as ordinary ComfyUI objects: MODEL, CLIP and VAE from small files.

There are two denoisers, a UNet and a diffusion transformer, under one text encoder and
autoencoder. ComfyUI is imported when `load_demo` is called, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .architecture import KINDS, TEXT, TRANSFORMER, UNET, VOCABULARY
from .autoencoder import Autoencoder

WEIGHTS = Path(__file__).parent / "retrace-demo.safetensors"
TRANSFORMER_WEIGHTS = Path(__file__).parent / "retrace-demo-transformer.safetensors"
"""The transformer alone; text encoder and autoencoder are those of `WEIGHTS`."""

DTYPE = torch.float32  # small enough to need no half precision, and inversions stay exact


class DemoModel(NamedTuple):
    """What a checkpoint loader gives: comfy's ModelPatcher, CLIP and VAE."""

    model: Any
    clip: Any
    vae: Any


def load_demo(
    path: Path = WEIGHTS, *, kind: str = "unet", transformer: Path = TRANSFORMER_WEIGHTS
) -> DemoModel:
    """Load a demo model; new objects each time, no global state changed.

    kind: "unet", or "dit" for a small PixArt. path: the file of text encoder, autoencoder and UNet;
    transformer: the PixArt's.
    Raises: FileNotFoundError if the weights are not there, ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no demo model {kind!r}; choose one of {', '.join(KINDS)}")
    # nodes run in inference mode: weights made there could never take part in a backward pass
    # and the networks' first random weights shall not move the user's generator
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        weights = read_weights(path)
        if kind == "unet":
            model = _build_unet(weights)
        else:
            model = _build_transformer(weights, _part(read_weights(transformer), "transformer"))
        return DemoModel(model, _build_clip(weights), _build_vae(weights))


def read_weights(path: Path = WEIGHTS) -> dict[str, Tensor]:
    """Read all tensors in float32 (integers stay), named `part.parameter`."""
    if not path.is_file():
        raise FileNotFoundError(f"the demo model's weights are not at {path}: reinstall the pack")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return {n: t.to(DTYPE) if t.is_floating_point() else t for n, t in tensors.items()}


def read_recipe(path: Path = WEIGHTS) -> dict[str, str]:
    """Read how the weights were made: data, sizes, steps, time, hardware, accuracies, licence."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def expand_vocabulary(rows: Tensor, vocabulary: Tensor) -> Tensor:
    """Place the stored embedding rows at their CLIP ids; words never trained get the mean row.

    rows: "kept width". vocabulary: "kept", CLIP ids. Returns "49408 width".
    """
    table = rows.mean(0, keepdim=True).repeat(VOCABULARY, 1)
    table[vocabulary] = rows
    return table


def _part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _build_unet(weights: dict[str, Tensor]) -> Any:
    from comfy.model_base import BaseModel

    return _wrap(BaseModel, UNET, weights, _part(weights, "unet"))


def _build_transformer(weights: dict[str, Tensor], state: dict[str, Tensor]) -> Any:
    from .transformer import make_model_class

    return _wrap(make_model_class(), TRANSFORMER, weights, state)


def _wrap(
    model_class: type, network: dict[str, Any], weights: dict[str, Tensor], state: dict[str, Tensor]
) -> Any:
    """Build a network as the host's MODEL; eps-prediction, SD 1's noise schedule."""
    from comfy import model_management
    from comfy.latent_formats import LatentFormat
    from comfy.model_base import ModelType
    from comfy.model_patcher import ModelPatcher
    from comfy.supported_models_base import BASE

    class DemoLatent(LatentFormat):
        """Four channels of unit variance, with colours for the host's quick previews."""

        latent_rgb_factors = weights["preview.factors"].tolist()
        latent_rgb_factors_bias = weights["preview.bias"].tolist()

    class DemoConfig(BASE):
        """The host's description of the network; SD 1's noise schedule is its default."""

        unet_config = network
        # the base class would force its own head counts onto the network
        unet_extra_config = {}  # noqa: RUF012
        latent_format = DemoLatent
        memory_usage_factor = 0.5

    config = DemoConfig(network)
    config.set_inference_dtype(DTYPE, None)
    offload = model_management.unet_offload_device()
    model = model_class(config, model_type=ModelType.EPS, device=offload)
    model.diffusion_model.load_state_dict(state)
    model.requires_grad_(False)
    return ModelPatcher(
        model, load_device=model_management.get_torch_device(), offload_device=offload
    )


def _build_clip(weights: dict[str, Tensor]) -> Any:
    from comfy.sd import CLIP
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.supported_models_base import ClipTarget

    clip = CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        tokenizer_data={"clip_l_max_length": TEXT["max_position_embeddings"]},
        model_options={"clip_l_model_config": TEXT, "dtype": DTYPE},
    )
    state = _part(weights, "text")
    table = "text_model.embeddings.token_embedding.weight"
    state[table] = expand_vocabulary(state[table], weights["vocabulary"])
    # the pooled output is used by neither denoiser
    state["text_projection.weight"] = torch.eye(TEXT["hidden_size"])
    clip.cond_stage_model.clip_l.transformer.load_state_dict(state)
    clip.cond_stage_model.requires_grad_(False)
    return clip


def _build_vae(weights: dict[str, Tensor]) -> Any:
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from comfy.taesd.taesd import TAESD

    # VAE only knows networks of its own: let it set itself up around the smallest with factor 8
    # and four channels, then put this one in its place
    vae = VAE(sd=TAESD().state_dict(), dtype=DTYPE)
    net = Autoencoder().eval().requires_grad_(False)
    net.load_state_dict(_part(weights, "autoencoder"))
    net.to(DTYPE)
    vae.first_stage_model = net
    vae.patcher = ModelPatcher(
        net, load_device=vae.device, offload_device=model_management.vae_offload_device()
    )
    if hasattr(vae, "model_size"):  # ComfyUI 0.3.52 keeps no size
        vae.size = None  # measured again for the new network
        vae.model_size()
    # 64 + 128 channels at a quarter and an eighth of the side, a few copies of each, in bytes
    vae.memory_used_encode = lambda shape, dtype: 100 * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, dtype: 100 * 64 * shape[2] * shape[3]
    return vae
