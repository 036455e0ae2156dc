"""Reuse of what a network computed before its text came in, while only the text changes."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .gradients import all_modules

REMEMBERED = frozenset({"ResBlock", "Downsample", "CrossAttention"})


@contextmanager
def remembering(*models: Any, attention: bool = True) -> Iterator[None]:
    """Return known outputs of blocks whose inputs have not changed, for the length of the block.

    While an embedding is optimised, everything before the first cross-attention sees the same
    input again and again; such blocks are recognised by their inputs wanting no gradient, and what
    they are reused for by inputs that are equal bit for bit. Each block's `forward` is shadowed on
    the instance; classes and modules stay as they were.
    attention: whether attention layers too; not while another pack looks into them.
    """
    blocks = REMEMBERED if attention else REMEMBERED - {"CrossAttention"}
    shadowed = []
    try:
        for module in all_modules(models):
            if type(module).__name__ in blocks:
                shadowed.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = remembered(module.forward)
        yield
    finally:
        for module, before in reversed(shadowed):
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before


def remembered(forward: Callable) -> Callable:
    """Return a forward that answers from memory when its tensors are those of the last time."""
    known: list[tuple[list[Tensor], Tensor]] = []

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        inputs = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if any(tensor.requires_grad for tensor in inputs):
            return forward(*args, **kwargs)
        if known and same(known[0][0], inputs):
            return known[0][1].clone()  # the host adds ControlNet residuals in place
        out = forward(*args, **kwargs)
        if torch.is_grad_enabled() and not out.requires_grad:
            known[:] = [([tensor.detach() for tensor in inputs], out.clone())]
        return out

    return wrapper


def same(known: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether two lists hold equal tensors."""
    return len(known) == len(inputs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(known, inputs, strict=True)
    )
