"""Two one-thread processes that average their gradients: faster than two threads on a busy CPU."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, nn


def run_workers(target: Callable, count: int, *arguments: object) -> None:
    """Run target(rank, count, *arguments) in `count` processes joined in a gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(_enter, (target, count, meeting, arguments), nprocs=count)


def average_gradients(module: nn.Module, count: int) -> None:
    """Replace every gradient by its mean over the workers, in one message."""
    if count == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    flat /= count
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def average_training(module: nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
    """Replace parameters and AdamW's moments by their means over the workers.

    Between two calls the workers go their own ways and need not wait for each other, which on a
    shared machine is most of what they would do. Source: Stich 2018 (arXiv:1805.09767), local SGD,
    with the moments of AdamW averaged too.
    """
    if count == 1:
        return
    tensors = [p.data for p in module.parameters()]
    for state in optimiser.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= count
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


class Budget:
    """Wall-clock training budget: the learning rate follows the share of it that is spent.

    Held by every worker but timed by the first only, so that all see the same numbers.
    """

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self.spent = spent
        self._last = time.monotonic()

    def tick(self) -> float:
        """Add the time since the last tick and return the share spent, the same in all workers."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last = now
        shared = torch.tensor([self.spent], dtype=torch.float64)
        distributed.broadcast(shared, 0)
        self.spent = float(shared)
        return self.spent / self.seconds


def cosine_rate(peak: float, share: float, warm_up: float = 0.01) -> float:
    """Give the learning rate at a share of the budget: linear warm-up, then half a cosine to 0."""
    if share < warm_up:
        return peak * (share + 1e-4) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint so that a reader never sees half of one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _enter(rank: int, target: Callable, count: int, meeting: str, arguments: tuple) -> None:
    # Linux shares a processor out by session first: in one of its own, a worker gets as much as
    # any other process, and torch still ends it with its parent
    os.setsid()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    target(rank, count, *arguments)
    distributed.destroy_process_group()
