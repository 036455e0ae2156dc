"""Attention of the source branch recorded over a trajectory: what it holds, its size, its place.

A store is a frozen value on a link. It is filled by a `Recorder` and only read afterwards, so any
number of threads may read it. Self-attention is kept as its normed input, from which query, key
and value are all projected; cross-attention as projected queries per step and keys once.
"""

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.errors import DivergenceError, PlanError
from .sites import ResidualBlock, Site

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PLACES = ("cpu", "gpu", "disk")
ALIGNMENT = 64


class Slot(NamedTuple):
    """One recorded tensor.

    part: "hidden", the normed input of a self-attention; "query" or "key" of a cross-attention,
    after projection; "feature", the output of a residual branch. half: "cond" or "uncond".
    """

    part: str
    site: Site | ResidualBlock
    half: str = "cond"


class SiteShape(NamedTuple):
    """Widths of a layer in the live model: channels of what is recorded there, heads."""

    channels: int
    heads: int


class FeatureShape(NamedTuple):
    """Channels of a residual branch and how much smaller than the latent it is."""

    channels: int
    downsample: int


@dataclass(frozen=True, eq=False)
class StoreSpec:
    """What a store holds; known, with its size, before anything is recorded.

    trajectory, negative: fingerprints of the states with their source prompt, and of the negative
      prompt of the unconditional half ("" without one). steps: those recorded, 0 the noisiest, of
      `total_steps`. images, height, width: of the latent. sites: layers with their shapes.
    halves: of self-attention; cross-attention is kept for the conditional half. tokens: length of
      the source prompt's encoding. dtype: name in `DTYPES`. features: residual blocks, likewise.
    """

    trajectory: str
    negative: str
    steps: tuple[int, ...]
    total_steps: int
    images: int
    height: int
    width: int
    sites: tuple[tuple[Site, SiteShape], ...]
    halves: tuple[str, ...]
    tokens: int
    dtype: str
    features: tuple[tuple[ResidualBlock, FeatureShape], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise PlanError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if not self.steps or not self.sites:
            raise PlanError("an attention store needs at least one step and one attention layer")
        if not set(self.steps) <= set(range(self.total_steps)):
            raise PlanError(
                f"steps {min(self.steps)} to {max(self.steps)} are not all among the trajectory's "
                f"0 to {self.total_steps - 1}"
            )

    def slots(self) -> dict[Slot, tuple[int, ...]]:
        """Return the shapes: "steps images tokens channels"; keys have no steps.

        Features are "steps images channels height width".
        """
        shapes: dict[Slot, tuple[int, ...]] = {}
        for site, shape in self.sites:
            grown = (len(self.steps), self.images, prod(self.grid(site)), shape.channels)
            if site.kind == "self":
                shapes.update({Slot("hidden", site, half): grown for half in self.halves})
            else:
                shapes[Slot("query", site)] = grown
                shapes[Slot("key", site)] = (self.images, self.tokens, shape.channels)
        for block, shape in self.features:
            planes = (shape.channels, *self.grid(shape))
            shapes[Slot("feature", block)] = (len(self.steps), self.images, *planes)
        return shapes

    def grid(self, at: Site | FeatureShape) -> tuple[int, int]:
        """Return the rows and columns of a layer."""
        return -(-self.height // at.downsample), -(-self.width // at.downsample)

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the store takes."""
        width = DTYPES[self.dtype].itemsize
        return sum(padded(prod(shape) * width) for shape in self.slots().values())

    def check_budget(self, budget: int, place: str) -> None:
        """Raise PlanError if the store would need more than `budget` bytes."""
        if self.size_bytes <= budget:
            return
        ways = ["fewer sites or steps", "a larger budget"]
        if self.dtype == "fp32":
            ways.insert(0, "fp16")
        if place != "disk":
            ways.append("disk with a larger budget")
        raise PlanError(
            f"this attention store needs {show_bytes(self.size_bytes)}, but the budget is "
            f"{show_bytes(budget)}: choose {', '.join(ways[:-1])} or {ways[-1]}"
        )

    def shape(self, site: Site) -> SiteShape:
        return dict(self.sites)[site]


def padded(size: int) -> int:
    """Return a byte size rounded up so that the next tensor is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def show_bytes(size: int) -> str:
    """Write a byte size for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a short name of some tensors' exact contents."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().to("cpu").contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class DiskFile:
    """A file that goes when its last user does (or the process ends)."""

    def __init__(self, folder: str | os.PathLike | None, size: int) -> None:
        handle, self.path = tempfile.mkstemp(prefix="retrace_attention_", suffix=".bin", dir=folder)
        self.remove = weakref.finalize(self, Path(self.path).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.truncate(size)


class _Fields(NamedTuple):
    spec: StoreSpec
    place: str
    slots: tuple[Slot, ...]
    tensors: tuple[Tensor, ...]
    file: DiskFile | None


class AttentionStore(_Fields):
    """Recorded attention, frozen. A tuple, so that the host's cache can weigh its tensors.

    place: "cpu", "gpu" or "disk" (then `file` holds the memory-mapped file).
    """

    __slots__ = ()

    def __deepcopy__(self, memo: dict) -> "AttentionStore":
        return self

    @property
    def size_bytes(self) -> int:
        return self.spec.size_bytes

    def has(self, slot: Slot, step: int) -> bool:
        """Whether a tensor was recorded at a step."""
        return slot in self.slots and step in self.spec.steps

    def read(self, slot: Slot, step: int, like: Tensor | None = None) -> Tensor:
        """Return "images ..." of one step, on the device and in the dtype of `like`.

        Raises: PlanError if it was not recorded.
        """
        if not self.has(slot, step):
            raise PlanError(
                f"the attention store holds no {slot.part} of {slot.site} ({slot.half}) at step "
                f"{step + 1}: capture that layer and step too"
            )
        tensor = self.tensors[self.slots.index(slot)]
        if slot.part != "key":
            tensor = tensor[self.spec.steps.index(step)]
        return tensor if like is None else tensor.to(like.device, like.dtype)


class Recorder:
    """The buffers of a store that is being filled; `finish` makes the store."""

    def __init__(
        self,
        spec: StoreSpec,
        place: str = "cpu",
        *,
        device: torch.device | str = "cpu",
        folder: str | os.PathLike | None = None,
    ) -> None:
        """device: used when place is "gpu". folder: of the file when place is "disk"."""
        if place not in PLACES:
            raise PlanError(f"a store's place must be one of {', '.join(PLACES)}; got {place!r}")
        self.spec, self.place = spec, place
        self.file = DiskFile(folder, spec.size_bytes) if place == "disk" else None
        dtype, shapes = DTYPES[spec.dtype], spec.slots()
        if self.file is None:
            device = device if place == "gpu" else "cpu"
            self.buffers = {
                slot: torch.zeros(shape, dtype=dtype, device=device)
                for slot, shape in shapes.items()
            }
        else:
            raw = torch.from_file(
                self.file.path, shared=True, size=spec.size_bytes, dtype=torch.uint8
            )
            self.buffers, at = {}, 0
            for slot, shape in shapes.items():
                size = prod(shape) * dtype.itemsize
                self.buffers[slot] = raw[at : at + size].view(dtype).view(shape)
                at += padded(size)
        self._written: set[tuple[Slot, int]] = set()

    def write(self, slot: Slot, step: int, values: Tensor) -> None:
        """Keep "images ..." of one step. Raises: DivergenceError if fp16 overflows."""
        buffer = self.buffers[slot]
        target = buffer if slot.part == "key" else buffer[self.spec.steps.index(step)]
        if target.shape != values.shape:
            raise PlanError(
                f"{slot.part} of {slot.site} has shape {list(values.shape)} where "
                f"{list(target.shape)} was expected; another node changes the number of tokens: "
                "connect the model before it"
            )
        target.copy_(values)
        if target.dtype == torch.float16 and not bool(target.isfinite().all()):
            raise DivergenceError(
                f"{slot.part} of {slot.site} at step {step + 1} does not fit fp16; choose bf16 or "
                "fp32 for the attention store"
            )
        self._written.add((slot, step))

    def finish(self) -> AttentionStore:
        """Return the store. Raises: PlanError if something was not recorded."""
        missing = [
            slot
            for slot in self.buffers
            if not any((slot, step) in self._written for step in self.spec.steps)
            or (
                slot.part != "key"
                and not all((slot, step) in self._written for step in self.spec.steps)
            )
        ]
        if missing:
            names = ", ".join(f"{slot.part} of {slot.site}" for slot in missing[:4])
            raise PlanError(f"{len(missing)} tensors were not recorded at all steps: {names}")
        return AttentionStore(
            self.spec, self.place, tuple(self.buffers), tuple(self.buffers.values()), self.file
        )
