"""Nodes that make what no user means to make: links with the right type and the wrong value.

Linked into the test server's custom_nodes beside the pack; see test_abuse.py.
"""

import ctypes
import gc
import hashlib
import sys
from contextlib import suppress
from pathlib import Path

import torch

TESTS = str(Path(__file__).resolve().parents[2])
NAN = float("nan")


def unet(config: dict, family: str):
    """Return a random UNet of the host's classes."""
    sys.path.append(TESTS)
    try:
        import helpers_host
    finally:
        sys.path.remove(TESTS)
    return helpers_host.make_unet_model({**helpers_host.SDXL_LIKE, **config}, family)


def flux():
    """Return a random Flux of two blocks: rectified flow, 16 channels, joint attention."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.Flux(
        {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2,
         "vec_in_dim": 8, "context_in_dim": 16, "hidden_size": 64, "mlp_ratio": 2.0,
         "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 14, 14],
         "theta": 10000, "qkv_bias": True, "guidance_embed": False}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def latent(*shape: int, value: float = 0.1) -> dict:
    """Return a LATENT of one value."""
    return {"samples": torch.full(shape, value)}


def text(*shape: int, value: float = 0.1) -> list:
    """Return a CONDITIONING of one value."""
    return [[torch.full(shape, value), {"pooled_output": torch.full((shape[0], 8), value)}]]


KINDS = {
    "MODEL": {
        "sdxl": lambda: unet({}, "SDXL"),
        "inpainting": lambda: unet({"in_channels": 9, "num_classes": None}, "SD15"),
        "flux": flux,
        "nothing": lambda: None,
    },
    "CLIP": {"nothing": lambda: None},
    "VAE": {"nothing": lambda: None},
    "CLIP_VISION": {"nothing": lambda: None},
    "LATENT": {
        "16 channels": lambda: latent(1, 16, 16, 16),
        "video": lambda: latent(1, 4, 3, 16, 16),
        "video of 16 channels": lambda: latent(1, 16, 3, 16, 16),
        "audio": lambda: latent(1, 8, 64),
        "nan": lambda: latent(1, 4, 16, 16, value=NAN),
        "inf": lambda: latent(1, 4, 16, 16, value=float("inf")),
        "no image": lambda: latent(0, 4, 16, 16),
        "no area": lambda: latent(1, 4, 0, 16),
        "no samples": dict,
        "huge numbers": lambda: latent(1, 4, 16, 16, value=1e30),
        "one pixel": lambda: latent(1, 4, 1, 1),
        "odd size": lambda: latent(1, 4, 7, 13),
        "batch of 3": lambda: latent(3, 4, 16, 16),
    },
    "CONDITIONING": {
        "empty": list,
        "other width": lambda: text(1, 77, 13),
        "nan": lambda: text(1, 77, 128, value=NAN),
        "no tokens": lambda: text(1, 0, 128),
        "no embedding": lambda: [["text", {}]],
        "batch of 3": lambda: text(3, 77, 128),
        "two parts": lambda: text(1, 77, 128) * 2,
    },
    "MASK": {
        "no area": lambda: torch.zeros(1, 0, 64),
        "no mask": lambda: torch.zeros(0, 64, 64),
        "nan": lambda: torch.full((1, 64, 64), NAN),
        "a picture": lambda: torch.zeros(1, 64, 64, 3),
        "all zero": lambda: torch.zeros(1, 64, 64),
        "all one": lambda: torch.ones(1, 64, 64),
        "other shape": lambda: torch.ones(1, 3, 500),
        "negative": lambda: torch.full((1, 64, 64), -5.0),
        "batch of 5": lambda: torch.ones(5, 64, 64),
    },
    "IMAGE": {
        "no picture": lambda: torch.zeros(0, 64, 64, 3),
        "no area": lambda: torch.zeros(1, 0, 64, 3),
        "nan": lambda: torch.full((1, 64, 64, 3), NAN),
        "a mask": lambda: torch.zeros(1, 64, 64),
        "one channel": lambda: torch.zeros(1, 64, 64, 1),
        "one pixel": lambda: torch.zeros(1, 1, 1, 3),
        "other shape": lambda: torch.zeros(1, 31, 200, 3),
        "batch of 3": lambda: torch.zeros(3, 64, 64, 3),
    },
    "SIGMAS": {
        "none": lambda: torch.zeros(0),
        "one": lambda: torch.ones(1),
        "nan": lambda: torch.tensor([2.0, NAN, 0.0]),
        "inf": lambda: torch.tensor([float("inf"), 1.0, 0.0]),
        "negative": lambda: torch.tensor([1.0, 0.5, -1.0]),
        "zeros": lambda: torch.zeros(3),
        "up and down": lambda: torch.tensor([1.0, 3.0, 2.0, 5.0]),
        "a table": lambda: torch.ones(2, 3),
        "too large": lambda: torch.tensor([1e9, 1.0, 0.0]),
    },
}


class Probe:
    """Makes one value; the concrete classes have a link type each."""

    RETURN_TYPES: tuple = ()
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(KINDS[cls.RETURN_TYPES[0]]), {})}}

    def make(self, kind: str):
        return (KINDS[self.RETURN_TYPES[0]][kind](),)


class ProbeTrajectory:
    """Spoils a trajectory, as a damaged or foreign one would be."""

    RETURN_TYPES = ("RETRACE_TRAJECTORY",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"trajectory": ("RETRACE_TRAJECTORY",), "kind": (list(SPOILT), {})}}

    def make(self, trajectory, kind: str):
        return (SPOILT[kind](trajectory),)


def repeated(trajectory, *times: int):
    """Return a trajectory whose states are repeated along batch, channels, height and width."""
    return trajectory._replace(
        latents=trajectory.latents.repeat(1, *times), clean=trajectory.clean.repeat(times)
    )


SPOILT = {
    "other family": lambda t: t._replace(model=t.model._replace(family="SDXL:UNetModel")),
    "other channels": lambda t: repeated(
        t._replace(model=t.model._replace(channels=16)), 1, 4, 1, 1
    ),
    "batch of 3": lambda t: repeated(t, 3, 1, 1, 1),
    "other size": lambda t: repeated(t, 1, 1, 2, 1),
}


class ProbeDirection:
    """Makes an edit direction for another text encoder, or a broken one."""

    RETURN_TYPES = ("RETRACE_DIRECTION",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"direction": ("RETRACE_DIRECTION",), "kind": (list(TURNED), {})}}

    def make(self, direction, kind: str):
        return (TURNED[kind](direction),)


TURNED = {
    "other width": lambda d: d._replace(tokens=torch.ones(1, 77, 13)),
    "nan": lambda d: d._replace(tokens=torch.full_like(d.tokens, NAN)),
}


class ProbeDigest:
    """Shows a hash of a model's weights and of what hangs on it, and which object it is."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "time": ("INT", {"max": 2**62})}}

    def show(self, model, time):
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        left = {
            "options": repr(model.model_options),
            "patches": [len(model.patches), len(model.object_patches), len(model.injections)],
            "hooks": [len(module._forward_hooks) for module in model.model.modules()],
            "own forwards": ["forward" in vars(module) for module in model.model.modules()],
        }
        digest.update(repr(left).encode())
        return {"ui": {"text": (digest.hexdigest(), str(id(model.model)))}}


class ProbeTidy:
    """Hands memory that nobody holds back to the system, so that what is held can be read off."""

    RETURN_TYPES = ()
    FUNCTION = "tidy"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"time": ("INT", {"max": 2**62})}}

    def tidy(self, time):
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {}


NODE_CLASS_MAPPINGS = {
    f"Probe_{kind}": type(f"Probe_{kind}", (Probe,), {"RETURN_TYPES": (kind,)}) for kind in KINDS
}
NODE_CLASS_MAPPINGS.update(
    Probe_RETRACE_TRAJECTORY=ProbeTrajectory,
    Probe_RETRACE_DIRECTION=ProbeDirection,
    ProbeDigest=ProbeDigest,
    ProbeTidy=ProbeTidy,
)
