"""Memory of a guidance step at real sizes, counted on shapes: nothing is computed, no GPU needed.

Runs Retrace's own gradient of the maps, and the textbook's guidance pass, on tensors without
values. Counted is every tensor alive above the weights; a fused operation's scratch is not seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from retrace.evaluation import tables
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training.host import use_host

SIGMA = 1.5
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    options = read_arguments(arguments)
    use_host()
    rows = []
    for pair in options.models.split(","):
        name, size = pair.split(":")
        for dtype in options.dtypes.split(","):
            rows.append([name, size, dtype, *measure(name, int(size), dtype)])
    print(tables.markdown_table(
        ["model", "pixels", "numbers", "weights GB", "textbook GB", "Retrace GB", "ratio",
         "with checkpointing GB", "ratio"],
        rows,
    ))  # fmt: skip
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench guidance_memory", description=__doc__)
    parser.add_argument("--models", default="sd15:512,sdxl:1024", help="model:pixels, ...")
    parser.add_argument("--dtypes", default="fp32,fp16", help="number formats (fp32,fp16)")
    return parser.parse_args(arguments)


def measure(name: str, size: int, dtype: str) -> list[str]:
    """Return the cells of one line: weights, and the peak of each way."""
    from ._memory import LiveTensors

    model, weights = make_shapes(name, DTYPES[dtype])
    ways: list[Callable[[], Any]] = [
        lambda: textbook(model.model, name, size),
        lambda: ours(model, name, size, "never"),
        lambda: ours(model, name, size, "always"),
    ]
    peaks = []
    for way in ways:
        with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as tensors:
            way()
        peaks.append(tensors.peak)
    book, plain, short = peaks
    return [
        *(f"{value / 1e9:.2f}" for value in (weights, book, plain)), f"{plain / book:.2f}",
        f"{short / 1e9:.2f}", f"{short / book:.2f}",
    ]  # fmt: skip


def make_shapes(name: str, dtype: torch.dtype) -> tuple[Any, int]:
    """Return a MODEL whose weights are shapes only, and their bytes."""
    import comfy.model_patcher
    import comfy.supported_models

    from ._models import ARCHITECTURES

    config_class, unet_config = ARCHITECTURES[name]

    class Config(getattr(comfy.supported_models, config_class)):
        unet_extra_config: dict = {}  # noqa: RUF012  the host's own name, read by its constructor

    config = Config({**unet_config, "dtype": dtype})
    config.set_inference_dtype(dtype, None)
    base, size = config.get_model({}, device=torch.device("meta")), 0
    with FakeTensorMode():
        for module in base.diffusion_model.modules():
            for key, weight in list(module._parameters.items()):
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    module._parameters[key] = nn.Parameter(empty, requires_grad=False)
                    size += empty.nbytes
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu), size


def ours(model: Any, name: str, size: int, mode: str) -> None:
    """Take the gradient of one conditional row's maps with respect to its latent."""
    import comfy.samplers
    from retrace.attention.rows import SOURCE_COND, TARGET_COND
    from retrace.host.guider import RowGuider, Rows
    from retrace.host.map_guidance import map_gradients
    from retrace.host.model import attention_sites

    from ._models import make_prompts

    source, target = (torch.zeros(1, 4, size // 8, size // 8) for _ in range(2))
    guider = RowGuider(model, make_prompts(name))
    guider.inner_model = model.model  # as the host leaves both while it samples
    model.model.current_patcher = model
    guider.conds = comfy.samplers.process_conds(
        model.model, source, guider.original_conds, source.device
    )
    weights = {site: 1.0 for site in attention_sites(model) if site.kind == "cross"}
    pair = (Rows(SOURCE_COND, "source", source), Rows(TARGET_COND, "target", target))
    try:
        map_gradients(guider, [pair], torch.tensor(SIGMA), {}, weights, mode)
    except DataDependentOutputException:
        pass  # in fp16 it asks whether the gradient is finite, when all is done


def textbook(base: Any, name: str, size: int) -> None:
    """Take the published gradient: two rows, every map made, the reference kept on the CPU."""
    from ._models import make_prompts
    from .map_guidance import explicit

    prompts = make_prompts(name)
    null, source, target = (prompts[key][0][0] for key in ("negative", "source", "target"))
    pooled = base.encode_adm(**prompts["negative"][0][1], width=size, height=size)
    extra = {} if pooled is None else {"y": pooled.expand(2, -1)}
    sigma = torch.full((2,), SIGMA)

    def maps(x: Tensor, context: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        options = {"patches_replace": {"attn2": explicit(base, found)}}
        base.apply_model(x, sigma, c_crossattn=context, transformer_options=options, **extra)
        return found

    x = torch.zeros(2, 4, size // 8, size // 8)
    with torch.no_grad():
        stored = maps(x, torch.cat([null, source]))
    leaf = x.requires_grad_(True)
    found = maps(leaf, torch.cat([null, target]))
    loss = sum(
        (one.float() - wanted.float()).square().sum((2, 3)).mean()
        for one, wanted in zip(found, stored, strict=True)
    )
    torch.autograd.grad(loss, leaf)
