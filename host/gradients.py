"""Gradients through the host's models, loaded as inference tensors, without copying weights."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

CHECKPOINTING = ("auto", "always", "never")

BLOCKS = frozenset({"ResBlock", "BasicTransformerBlock"})
"""Classes of the host's blocks whose activations can be recomputed: their forward is pure."""

NOT_DIFFERENTIABLE = frozenset({"attention_sage", "attention_flash", "attention_sub_quad"})
"""Attentions without a usable backward: sub_quad writes in place when memory is short."""


@contextmanager
def gradients(*models: Any) -> Iterator[None]:
    """Allow gradients with respect to inputs (never to weights) for the length of a with block.

    The host loads and runs models under inference mode; autograd refuses to save such tensors. For
    the block, every parameter and buffer is replaced by an alias over the same storage that wants
    no gradient; the original objects are put back at its end, whatever happened. No weight is
    copied. Tensors made under inference mode that go in must be cloned inside the block.
    models: ModelPatchers or modules; ControlNets that take part are models of their own.
    """
    with torch.inference_mode(False), torch.enable_grad():
        swapped: list[tuple[dict, str, Tensor, Tensor]] = []
        try:
            aliases: dict[int, Tensor] = {}
            for module in all_modules(models):
                for table in (module._parameters, module._buffers):
                    for name, tensor in table.items():
                        if tensor is None or not needs_alias(tensor):
                            continue
                        alias = aliases.setdefault(id(tensor), make_alias(tensor))
                        swapped.append((table, name, tensor, alias))
                        table[name] = alias
            yield
        finally:
            for table, name, tensor, alias in reversed(swapped):
                if table.get(name) is alias:  # a LoRA hook may have put another weight here
                    table[name] = tensor


def all_modules(models: tuple) -> Iterator[nn.Module]:
    """Yield every module of models (ModelPatchers or modules), each once."""
    seen: set[int] = set()
    for model in models:
        root = model if isinstance(model, nn.Module) else model.model
        for module in root.modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module


def needs_alias(tensor: Tensor) -> bool:
    """Whether a weight would stop autograd (inference tensor) or make it work for nothing.

    Subclasses (quantised weights) are dequantised into new tensors before use and stay.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and (tensor.is_inference() or tensor.requires_grad)


def make_alias(tensor: Tensor) -> Tensor:
    """Return a normal tensor over the same storage, a parameter if `tensor` is one."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(alias, requires_grad=False)
    return alias


@contextmanager
def checkpointing(*models: Any) -> Iterator[None]:
    """Keep only the inputs of the network's blocks and recompute the rest in the backward pass.

    Numerically the same: recomputation runs the same operations. Each block's `forward` is shadowed
    on the instance for the length of the with block; classes and modules stay as they were.
    Source: Chen et al. 2016 (arXiv:1604.06174), one segment a block.
    """
    shadowed: list[tuple[nn.Module, Any]] = []
    try:
        for module in all_modules(models):
            if type(module).__name__ in BLOCKS:
                shadowed.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = recomputed(module.forward)
        yield
    finally:
        for module, before in reversed(shadowed):
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before


def recomputed(forward: Callable) -> Callable:
    """Return a forward whose activations are recomputed when the backward pass needs them.

    The options' dict is copied: the host rewrites it (block addresses) as it walks the blocks,
    and the recomputation has to see what the block saw.
    """

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
        kwargs = {k: dict(arg) if isinstance(arg, dict) else arg for k, arg in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    return wrapper


class GradientRun:
    """Runs closures that differentiate; turns checkpointing on when memory turns out short.

    mode: "auto" starts without and repeats a closure that ran out of memory with checkpointing on,
    for the rest of the run; "always" and "never" say what they do. Used inside `gradients`.
    """

    def __init__(self, models: tuple, mode: str, stack: ExitStack) -> None:
        self.models, self.mode, self.stack = models, mode, stack
        self.checkpointed = False
        if mode == "always":
            self.start_checkpointing()

    def start_checkpointing(self) -> None:
        self.stack.enter_context(checkpointing(*self.models))
        self.checkpointed = True

    def __call__(self, closure: Callable[[], Any]) -> Any:
        """Return the closure's result; a closure must leave nothing behind when it fails."""
        try:
            return closure()
        except comfy.model_management.OOM_EXCEPTION:
            if self.mode != "auto" or self.checkpointed:
                raise
        # outside the except clause: the traceback there keeps the failed graph alive
        comfy.model_management.soft_empty_cache()
        self.start_checkpointing()
        return closure()


@contextmanager
def gradient_run(*models: Any, mode: str = "auto") -> Iterator[GradientRun]:
    """Open `gradients` on the models and yield a GradientRun."""
    with gradients(*models), ExitStack() as stack:
        yield GradientRun(models, mode, stack)


def guided_models(guider: Any) -> tuple:
    """Return the models a running guider evaluates: its own, and its conds' ControlNets."""
    models = {id(guider.inner_model): guider.inner_model}
    for entries in guider.conds.values():
        for entry in entries:
            control = entry.get("control")
            for patcher in control.get_models() if control is not None else ():
                models[id(patcher.model)] = patcher.model
    return tuple(models.values())


def differentiable(model_options: dict) -> dict:
    """Return model options whose attention has a backward; another pack's override stays.

    Calls without gradients take the same attention, so that all predictions of a run agree.
    """
    transformer = {**model_options.get("transformer_options", {})}
    before = transformer.get("optimized_attention_override")

    def override(func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if getattr(func, "__name__", "") in NOT_DIFFERENTIABLE:
            func = comfy.ldm.modules.attention.attention_pytorch
        return func(*args, **kwargs) if before is None else before(func, *args, **kwargs)

    transformer["optimized_attention_override"] = override
    return {**model_options, "transformer_options": transformer}


def loss_scale(base: Any, factor: float) -> float:
    """Return a power of two near `factor` for networks that compute in fp16, 1 for others.

    Multiplying a loss by it keeps small gradients inside fp16: a mean over the latent's elements
    makes each gradient smaller by their number.
    """
    dtype = base.manual_cast_dtype or base.get_dtype()
    return 2.0 ** round(math.log2(factor)) if dtype == torch.float16 else 1.0
