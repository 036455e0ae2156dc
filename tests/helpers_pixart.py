"""Small random PixArts of every variant, and single network calls with maps materialised."""

from contextlib import ExitStack, contextmanager

import torch
from helpers_host import make_unet_model
from helpers_textbook import Textbook

BASE = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 4,
    "num_heads": 4, "caption_channels": 24, "model_max_length": 12, "micro_condition": False,
}  # fmt: skip

VARIANTS = {
    "alpha 512": ("PixArtAlpha", {}),
    "alpha MS": ("PixArtAlpha", {"micro_condition": True}),
    "sigma": ("PixArtSigma", {"model_max_length": 30, "pe_interpolation": 1}),
    "qk norm": ("PixArtSigma", {"qk_norm": True}),
    "compressed keys": ("PixArtSigma", {"kv_compress_config": {
        "sampling": "uniform_every", "scale_factor": 2, "kv_compress_layer": [1, 3],
    }}),
}  # fmt: skip
"""Configuration class of the host, and what differs from `BASE`."""

SIZE = (34, 40)
"""A latent that is not square, of 17 x 20 tokens."""


def make_pixart(variant="alpha 512", seed=1, **changes):
    """Return a ModelPatcher around a random PixArt."""
    config_class, own = VARIANTS[variant]
    return make_unet_model({**BASE, **own, **changes}, config_class, seed=seed)


def make_inputs(model, images, tokens=12, size=SIZE):
    """Return rows of latents and contexts for `helpers_textbook.ours`; order as there."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, images, 4, *size, generator=generator)
    x[1], x[0] = x[2], x[3]
    context = torch.randn(3, 1, tokens, 24, generator=generator) * 3
    context = context[[0, 0, 1, 2]].expand(-1, images, -1, -1)
    return x.flatten(0, 1) * 3, context.flatten(0, 1), {}


@contextmanager
def materialised(network, book):
    """Let a Textbook compute every attention of a PixArt, its maps made and edited."""
    with ExitStack() as stack:
        for site in book.facts.sites:
            block = network.blocks[site.index]
            layer = block.attn if site.kind == "self" else block.cross_attn
            forward = self_attention if site.kind == "self" else cross_attention
            layer.forward = bound(forward, book, site, layer)
            stack.callback(delattr, layer, "forward")
        yield


def bound(function, book, site, layer):
    return lambda *args, **kwargs: function(book, site, layer, *args, **kwargs)


def self_attention(book, site, layer, x, HW=None):
    q, k, v = layer.qkv(x).unflatten(-1, (3, -1)).unbind(-2)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if layer.sr_ratio > 1:
        k, v = k[:, :: layer.sr_ratio], v[:, :: layer.sr_ratio]
    return layer.proj(book.self_attention(site, q, k, v, layer.num_heads))


def cross_attention(book, site, layer, x, cond, mask=None):
    keys = layer.kv_linear(cond).unflatten(1, (len(x), -1)).squeeze(0)
    k, v = keys.unflatten(-1, (2, -1)).unbind(-2)
    return layer.proj(book.cross_attention(site, layer.q_linear(x), k, v, layer.num_heads))


def textbook(model, cases, facts, step, x, context, extra):
    """Return the network's output with every map materialised and edited."""
    network = model.model.diffusion_model
    with torch.no_grad(), materialised(network, Textbook(cases, facts, step)):
        return plain(model, x, context, extra)


def plain(model, x, context, extra=None):
    """Return the unpatched host's output."""
    with torch.no_grad():
        return model.model.apply_model(
            x, torch.full((len(x),), 4.0), c_crossattn=context, **(extra or {})
        )
