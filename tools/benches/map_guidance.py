"""What cross-attention guidance costs a step: against a textbook pix2pix-zero on the same network.

The textbook way, written here: a reference pass of two rows whose maps are kept on the CPU, a pass
of two rows with the gradient of their maps' distance, and a second pass of two rows. Retrace asks
the source's conditional row for its maps, differentiates the target's conditional row, and predicts
both halves of the target. Weights are random, so only costs mean anything.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from retrace.evaluation import tables
from torch import Tensor
from training.host import use_host

CFG = 7.5
AMOUNT = 0.01
LIMIT = 0.7


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if the limit is missed."""
    options = read_arguments(arguments)
    use_host()
    from . import _memory, _models

    model = _models.make_model(options.model)
    prompts = _models.make_prompts(options.model)
    trajectory = invert(model, prompts["source"], options)
    device = model.load_device
    ways: dict[str, Callable[[], Any]] = {
        "textbook": lambda: textbook(model.model, trajectory, prompts, device),
        "Retrace": lambda: ours(model, trajectory, prompts, "never"),
        "Retrace, checkpointing": lambda: ours(model, trajectory, prompts, "always"),
    }
    # on the CPU the processor's own time: other work on the machine does not count in it
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    ways["Retrace"]()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, run in ways.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    memory = {name: _memory.peak_memory(run, device, 0).run for name, run in ways.items()}
    times = {name: min(values) / options.steps for name, values in seconds.items()}
    print(f"{options.model}, {options.size} pixels, {options.steps} steps, {device.type}")
    print(tables.markdown_table(
        ["way", "seconds a step", "ratio", "peak MB", "ratio"],
        [[name, f"{times[name]:.2f}", f"{times[name] / times['textbook']:.2f}",
          f"{memory[name]:.0f}", f"{memory[name] / memory['textbook']:.2f}"] for name in ways],
    ))
    kept = times["Retrace"] <= LIMIT * times["textbook"]
    print(f"{'kept' if kept else 'MISSED'}: time at most {LIMIT}")
    return 0 if kept else 1


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench map_guidance", description=__doc__)
    parser.add_argument("--model", default="sd15-reduced", help="architecture (sd15-reduced)")
    parser.add_argument("--size", type=int, default=256, help="pixels (256)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps (2)")
    parser.add_argument("--repeats", type=int, default=3, help="best of (3)")
    return parser.parse_args(arguments)


def invert(model: Any, source: list, options: argparse.Namespace) -> Any:
    """Return a DDIM inversion of a random latent with a pinned source."""
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    side = options.size // 8
    samples = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    found = invert(model, source, {"samples": samples}, steps=options.steps)[0]
    return found.replace(source_rule=SourceRule(pinned=True))


def ours(model: Any, trajectory: Any, prompts: dict, mode: str) -> Tensor:
    """Edit with cross-attention guidance."""
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.host.editing import run_edit, with_controller

    guided = with_controller(model, AttentionGuidance(AMOUNT, checkpointing=mode))
    with torch.inference_mode():
        return run_edit(guided, trajectory, prompts["target"], prompts["negative"], cfg=CFG).edited


def textbook(base: Any, trajectory: Any, prompts: dict, device: torch.device) -> Tensor:
    """Edit as pix2pix-zero writes it down, on the host's network, weights frozen.

    Source: Parmar et al. 2023 (arXiv:2302.03027), Sec. 3.2: reference maps of every step first.
    """
    from retrace.host.gradients import gradients

    sigmas = trajectory.sigmas.to(device)
    null, source, target = (
        prompts[name][0][0].to(device) for name in ("negative", "source", "target")
    )
    pooled = base.encode_adm(**prompts["negative"][0][1], width=256, height=256)
    extra = {} if pooled is None else {"y": pooled.to(device).expand(2, -1)}

    def predict(x: Tensor, sigma: Tensor, context: Tensor, maps: list | None) -> Tensor:
        """Predict two rows; collect every cross-attention's map."""
        options = {} if maps is None else {"patches_replace": {"attn2": explicit(base, maps)}}
        return base.apply_model(
            x, sigma.expand(2), c_crossattn=context, transformer_options=options, **extra
        )

    with gradients(base):
        stored = []
        x = trajectory.latents[-1].to(device).clone()
        for i in range(trajectory.steps):
            sigma, following = sigmas[-1 - i], sigmas[-2 - i]
            with torch.no_grad():
                maps: list[Tensor] = []
                out = predict(torch.cat([x, x]), sigma, torch.cat([null, source]), maps)
                stored.append([found.cpu() for found in maps])
                x = step(x, out, sigma, following)
        x = trajectory.latents[-1].to(device).clone()
        context = torch.cat([null, target])
        for i in range(trajectory.steps):
            sigma, following = sigmas[-1 - i], sigmas[-2 - i]
            leaf = torch.cat([x, x]).requires_grad_(True)
            maps = []
            predict(leaf, sigma, context, maps)
            loss = sum(
                (found - wanted.to(device)).square().sum((2, 3)).mean()
                for found, wanted in zip(maps, stored[i], strict=True)
            )
            (gradient,) = torch.autograd.grad(loss, leaf)
            with torch.no_grad():
                moved = leaf.detach() - AMOUNT * (1 + sigma**2) * gradient
                x = step(moved[:1], predict(moved, sigma, context, None), sigma, following)
    return x


def step(x: Tensor, out: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Guide and take a DDIM step."""
    return x + (following - sigma) * (x - (out[:1] + CFG * (out[1:] - out[:1]))) / sigma


def explicit(base: Any, maps: list[Tensor]) -> dict:
    """Return replacements that make every cross-attention's map and multiply the values with it."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
        heads = extra["n_heads"]
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        found = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        maps.append(found)
        return (found @ v).transpose(1, 2).flatten(2)

    network = base.diffusion_model
    stages = {"input": network.input_blocks, "output": network.output_blocks}
    addresses = {("middle", 0): replace}
    for name, blocks in stages.items():
        addresses |= {(name, index): replace for index in range(len(blocks))}
    return addresses
