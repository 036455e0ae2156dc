"""Peak memory of a run: of the allocator on a GPU, of the tensors alive on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEGABYTE = 2**20


class Peak(NamedTuple):
    """Peak megabytes beyond what was there before the run, and with the model's weights."""

    run: float
    total: float


class LiveTensors(TorchDispatchMode):
    """Adds up the storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in inputs:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_memory(run: Callable[[], object], device: torch.device, weights: int) -> Peak:
    """Return the peak of a run in megabytes. weights: bytes of the model.

    On the CPU scratch memory inside a fused operation is not seen, only what it returns.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return Peak((peak - before) / MEGABYTE, peak / MEGABYTE)
    with LiveTensors() as tensors:
        run()
    return Peak(tensors.peak / MEGABYTE, (tensors.peak + weights) / MEGABYTE)
