"""What null-text optimisation costs: seconds and extra memory against the published way.

The published loop, written here on the same network: gradients of every weight are computed and
kept, attention maps are made in memory, and each step ends with a call of two rows. Its last line
is the same loop on fused attention, so that the gain that is not attention's can be seen. Weights
are random, so only costs mean anything; that all find the same losses is checked.
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
LIMIT = 0.6
AGREEMENT = 1e-3


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if a limit is missed."""
    options = read_arguments(arguments)
    use_host()
    from . import _memory, _models

    model = _models.make_model(options.model)
    prompts = _models.make_prompts(options.model)
    trajectory = invert(model, prompts["source"], options)
    base, device = model.model, model.load_device
    ways: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published(base, trajectory, prompts, options.inner, device),
        "Retrace": lambda: ours(model, trajectory, prompts, options.inner, "never"),
        "Retrace, checkpointing": lambda: ours(model, trajectory, prompts, options.inner, "always"),
        "published, fused attention": lambda: published(
            base, trajectory, prompts, options.inner, device, fused=True
        ),
    }
    warm(ways["Retrace"])
    # on the CPU the processor's own time: other work on the machine does not count in it
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = {name: [] for name in ways}
    losses = {}
    for _ in range(options.repeats):  # interleaved: a busy machine slows all ways alike
        for name, run in ways.items():
            started = clock()
            losses[name] = run()
            seconds[name].append(clock() - started)
    memory = {name: _memory.peak_memory(run, device, 0).run for name, run in ways.items()}
    times = {name: min(values) for name, values in seconds.items()}
    reference = losses["published"]
    print(f"{options.model}, {options.size} pixels, {options.steps} steps of {options.inner} inner "
          f"steps, {device.type}")
    rows = [
        [name, f"{times[name]:.1f}", f"{times[name] / times['published']:.2f}",
         f"{memory[name]:.0f}", f"{memory[name] / memory['published']:.2f}",
         f"{float((losses[name] - reference).abs().max() / reference.max()):.1e}"]
        for name in ways
    ]
    head = ["way", "seconds", "ratio", "extra MB", "ratio", "losses differ by"]
    print(tables.markdown_table(head, rows))
    right = all(
        float((losses[name] - reference).abs().max() / reference.max()) <= AGREEMENT
        for name in ways
    )
    fast = times["Retrace"] <= LIMIT * times["published"]
    small = memory["Retrace"] <= LIMIT * memory["published"]
    for name, kept in (("same losses", right), (f"time at most {LIMIT}", fast),
                       (f"extra memory at most {LIMIT}", small)):
        print(f"{'kept' if kept else 'MISSED'}: {name}")
    return 0 if right and fast and small else 1


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench null_text", description=__doc__)
    parser.add_argument("--model", default="sd15-reduced", help="architecture (sd15-reduced)")
    parser.add_argument("--size", type=int, default=384, help="pixels (384)")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps (1)")
    parser.add_argument("--inner", type=int, default=10, help="inner steps (10)")
    parser.add_argument("--repeats", type=int, default=2, help="best of (2)")
    return parser.parse_args(arguments)


def invert(model: Any, source: list, options: argparse.Namespace) -> Any:
    """Return a DDIM inversion of a random latent."""
    from retrace.host.inversion import invert

    side = options.size // 8
    samples = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    return invert(model, source, {"samples": samples}, steps=options.steps)[0]


def ours(model: Any, trajectory: Any, prompts: dict, inner: int, mode: str) -> Tensor:
    """Run Retrace's optimisation; return its losses."""
    from retrace.host.null_text import walk

    settings = {"inner_steps": inner, "learning_rate": 1e-2, "early_stop": -1.0}
    with torch.inference_mode():
        sampler, _ = walk(model, trajectory, prompts["negative"], CFG, mode, settings)
    return torch.cat([state.losses for state in sampler.states])[:, 0]


def published(
    base: Any, trajectory: Any, prompts: dict, inner: int, device: torch.device,
    fused: bool = False,
) -> Tensor:  # fmt: skip
    """Run the published loop on the host's network, weights and all; return its losses.

    Source: Mokady et al. 2022 (arXiv:2211.09794), Alg. 1 as its code runs it: the network's weights
    require gradients, so each backward pass computes and accumulates theirs.
    """
    import comfy.model_management
    from comfy.ldm.modules.attention import attention_basic, attention_pytorch

    comfy.model_management.load_models_gpu([])
    kernel = attention_pytorch if fused else attention_basic
    attention = {"optimized_attention_override": lambda func, *args, **kw: kernel(*args, **kw)}
    cond = prompts["source"][0][0].to(device)
    null = prompts["negative"][0][0].to(device)
    pooled = {"y": base.encode_adm(**prompts["negative"][0][1], width=256, height=256)}
    extra = {name: value.to(device) for name, value in pooled.items() if value is not None}
    z = trajectory.latents.to(device)
    sigmas = trajectory.sigmas.to(device)
    x, losses = z[-1], []

    def predict(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        rows = {name: value.expand(len(x), -1) for name, value in extra.items()}
        return base.apply_model(
            x, sigma.expand(len(x)), c_crossattn=context, transformer_options={**attention}, **rows
        )

    def step(x: Tensor, guided: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return x + (sigma_next - sigma) * (x - guided) / sigma

    weights = [p.requires_grad_(True) for p in base.diffusion_model.parameters()]
    with torch.enable_grad():
        for i in range(trajectory.steps):
            sigma, sigma_next = sigmas[-1 - i], sigmas[-2 - i]
            with torch.no_grad():
                positive = predict(x, sigma, cond)
            null = null.detach().clone().requires_grad_(True)
            adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            for _ in range(inner):
                uncond = predict(x, sigma, null)
                moved = step(x, uncond + CFG * (positive - uncond), sigma, sigma_next)
                scale = 1 / (1 + sigma_next**2)
                loss = (moved - z[-2 - i]).square().mean() * scale
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(loss.item())
            with torch.no_grad():
                both = predict(torch.cat([x, x]), sigma, torch.cat([null, cond]))
                x = step(x, both[:1] + CFG * (both[1:] - both[:1]), sigma, sigma_next)
    for weight in weights:
        weight.grad = None
    return torch.tensor(losses)


def warm(run: Callable[[], Any]) -> None:
    """Run once, so that caches and code paths are ready for all ways."""
    run()
