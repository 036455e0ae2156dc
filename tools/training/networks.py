"""The denoisers and their text encoder as trainable networks with the host's parameter names."""

from __future__ import annotations

from pathlib import Path

import torch
from retrace.demo.architecture import TEXT, TRANSFORMER, UNET
from retrace.demo.bundle import WEIGHTS, read_weights
from retrace.demo.transformer import make_class
from torch import Tensor, nn

from .host import PlainOperations, use_host


class Denoiser(nn.Module):
    """ComfyUI's UNetModel and CLIPTextModel, trained together.

    tokens: the CLIP ids that occur; others are never trained, so only these rows are kept.
    """

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        use_host()
        from comfy.clip_model import CLIPTextModel
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        self.unet = UNetModel(**UNET, dtype=torch.float32, device="cpu", operations=PlainOperations)
        self.text = CLIPTextModel(TEXT, torch.float32, "cpu", PlainOperations)
        self.text.set_input_embeddings(nn.Embedding(len(tokens), TEXT["hidden_size"]))
        nn.init.normal_(self.text.get_input_embeddings().weight, std=0.5)
        nn.init.normal_(self.text.text_model.embeddings.position_embedding.weight, std=0.1)
        _silence_outputs(self.unet)

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode "batch 32" rows of the kept vocabulary to "batch 32 width".

        The same function as the host's CLIPTextModel, whose layers add in place.
        """
        model = self.text.text_model
        positions = model.embeddings.position_embedding.weight
        x = model.embeddings.token_embedding(tokens) + positions
        for layer in model.encoder.layers:
            attention = layer.self_attn
            normed = layer.layer_norm1(x)
            q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
            x = x + attention.out_proj(plain_attention(None, q, k, v, attention.heads, causal=True))
            x = x + layer.mlp(layer.layer_norm2(x))
        return model.final_layer_norm(x)

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict eps of latents at variance-preserving scale, "batch 4 height width"."""
        options = {"optimized_attention_override": plain_attention}
        return self.unet(x, timestep, self.encode(tokens), transformer_options=options)


class TransformerDenoiser(nn.Module):
    """ComfyUI's PixArtMS under the text encoder that was trained with the UNet, which stays.

    tokens: the CLIP ids that occur, as they were for the UNet. weights: what was exported of it.
    """

    def __init__(self, tokens: list[int], weights: Path = WEIGHTS) -> None:
        super().__init__()
        use_host()
        text = Denoiser(tokens)
        known = read_weights(weights)
        if known["vocabulary"].tolist() != tokens:
            raise ValueError(f"these captions have other words than those behind {weights}")
        state = {n.removeprefix("text."): v for n, v in known.items() if n.startswith("text.")}
        missing, unexpected = text.text.load_state_dict(state, strict=False)
        if unexpected or [name for name in missing if "text_projection" not in name]:
            raise ValueError(f"{weights} holds another text encoder")
        self._text = (text.requires_grad_(False),)  # in a tuple, so that it is no part of this net
        self.transformer = make_class()(
            **TRANSFORMER, dtype=torch.float32, device="cpu", operations=PlainOperations
        )
        _start_transformer(self.transformer)

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict eps of latents at variance-preserving scale, "batch 4 height width"."""
        with torch.no_grad():
            context = self._text[0].encode(tokens)
        return self.transformer(x, timestep, context)


def plain_attention(
    func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, causal=False, **_: object
) -> Tensor:
    """Attend with plain products, "batch tokens width"; its CPU backward beats the fused one's."""
    del func, mask
    batch, _, width = q.shape
    q, k, v = (t.reshape(batch, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    logits = (q * (width // heads) ** -0.5) @ k.transpose(-1, -2)  # [batch heads queries keys]
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(later, float("-inf"))
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(batch, -1, width)


def _silence_outputs(network: nn.Module) -> None:
    # every residual branch starts as nothing, as in the published UNet
    for name, module in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name in ("out.2", "tail_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _start_transformer(net: nn.Module) -> None:
    # PixArt's own start: Xavier, and cross-attention begins as nothing. Its deviation of 0.02 for
    # what reads times and words is made for 1152 channels: with 192 both would hardly be heard
    for block in (*net.blocks, net.final_layer):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(net.x_embedder.proj.weight.flatten(1))
    nn.init.zeros_(net.x_embedder.proj.bias)
    for layer in (net.t_embedder.mlp, net.y_embedder.y_proj):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
    nn.init.normal_(net.t_block[1].weight, std=0.5 * net.hidden_size**-0.5)
    nn.init.zeros_(net.t_block[1].bias)
    for block in net.blocks:
        nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(block.cross_attn.proj.bias)
    _silence_outputs(net)
