"""PatchMerge on PixArt's self-attention at real token counts: speed, cost of matching, memory.

Random weights, torch's fused attention, Retrace's own hooks on the host's layers. A layer's time is
that of its self-attention with all projections; the network's that of a whole forward pass. With
`--edit` whole edits are timed instead: DDIM inversion, and MasaCtrl over a pinned source.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from retrace.evaluation import tables
from torch import Tensor
from training.host import use_host

from .attention import use_fused_attention

HEAD = 72  # PixArt-XL's channels a head
CAPTION = 300
ROLES = {1: ("source cond",), 2: ("source cond", "target cond"),
         3: ("target uncond", "source cond", "target cond")}  # fmt: skip


class Times(NamedTuple):
    """Seconds of one self-attention layer.

    matching: of the matching alone. moving: of merging and unmerging alone.
    """

    plain: float
    merged: float
    matching: float
    moving: float

    @property
    def share(self) -> float:
        """Cost of matching as a share of what merged attention saves by it."""
        return self.matching / (self.plain - (self.merged - self.matching))


@torch.inference_mode()
def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    options = read_arguments(arguments)
    use_host()
    use_fused_attention()
    if not torch.cuda.is_available():
        torch.set_num_threads(options.threads)
    model = make_pixart(options.width, options.depth)
    network = model.model.diffusion_model
    print(
        f"PixArt-XL with {options.width} channels for 1152 and {options.depth} blocks for 28, "
        f"random weights, {next(network.parameters()).dtype}; medians of {options.repeats}.\n"
    )
    if options.edit:
        print(edit_table(model, options))
        return 0
    rows = []
    for size in options.sizes.split(","):
        for count in map(int, options.rows.split(",")):
            for ratio in map(float, options.ratios.split(",")):
                rows.append([size, str(count), f"{ratio:g}", *measure(network, size, count, ratio,
                                                                 options)])  # fmt: skip
                print("  ".join(rows[-1]), flush=True)
    print("\n" + tables.markdown_table(
        ["pixels", "rows", "ratio", "tokens", "layer s", "merged s", "faster", "matching s",
         "matching of saved", "moving s", "network s", "merged s", "faster", "memory"],
        rows,
    ))  # fmt: skip
    return 0


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="bench patch_merge", description=__doc__)
    parser.add_argument("--sizes", default="512x512,1024x1024,1024x2048", help="pixels")
    parser.add_argument("--rows", default="1,3", help="rows of a model call: 1, 2 or 3 (1,3)")
    parser.add_argument("--ratios", default="0.5,0.8", help="merged away (0.5,0.8)")
    parser.add_argument("--width", type=int, default=1152 if gpu else 288,
                        help=f"channels, a multiple of {HEAD}; 1152 is PixArt-XL's")
    parser.add_argument("--depth", type=int, default=28 if gpu else 2, help="blocks; 28 is XL's")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many (3)")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (1)")
    parser.add_argument("--edit", type=int, default=0, metavar="STEPS",
                        help="time whole edits of so many steps")
    return parser.parse_args(arguments)


def make_pixart(width: int, depth: int) -> Any:
    """Return a random PixArt-Sigma as a MODEL on the host's device; fp16 on a GPU, else fp32."""
    from ._models import ARCHITECTURES, make_model

    config = {
        "input_size": 128, "patch_size": 2, "in_channels": 4, "hidden_size": width, "depth": depth,
        "num_heads": width // HEAD, "caption_channels": 4096, "model_max_length": CAPTION,
        "micro_condition": False, "pe_interpolation": 2,
    }  # fmt: skip
    ARCHITECTURES["pixart"] = ("PixArtSigma", config)
    return make_model("pixart")


def measure(
    network: Any, size: str, count: int, ratio: float, options: argparse.Namespace
) -> list[str]:
    """Return the cells of one line behind size, rows and ratio."""
    from ._memory import peak_memory

    x, time_step, context = make_inputs(network, size, count)
    times = time_layer(network, x, ratio, count, options.repeats)

    def forward() -> Tensor:
        return network(x, time_step, context)

    def merged_forward() -> Tensor:
        with merging(network, x, ratio, count):
            return forward()

    whole, fast = (median(run, options.repeats) for run in (forward, merged_forward))
    plain, peak = (peak_memory(run, x.device, 0).run for run in (forward, merged_forward))
    return [
        str(x.shape[2] * x.shape[3] // 4), *(f"{value:.3f}" for value in times[:2]),
        f"{times.plain / times.merged:.2f}x", f"{times.matching:.4f}", f"{100 * times.share:.1f} %",
        f"{times.moving:.4f}", f"{whole:.2f}", f"{fast:.2f}", f"{whole / fast:.2f}x",
        f"{100 * (peak / plain - 1):+.1f} %",
    ]  # fmt: skip


def edit_table(model: Any, options: argparse.Namespace) -> str:
    """Return seconds of whole edits, plain and merged, as a table."""
    from retrace.attention.patch_merge import PatchMerge
    from retrace.host.merging import with_patch_merge

    rows = []
    for size in options.sizes.split(","):
        plain = median(lambda size=size: run_whole(model, size, options.edit), options.repeats)
        for ratio in map(float, options.ratios.split(",")):
            fast = with_patch_merge(model, PatchMerge(ratio))
            merged = median(
                lambda size=size, fast=fast: run_whole(fast, size, options.edit), options.repeats
            )
            rows.append([size, f"{ratio:g}", f"{plain:.1f}", f"{merged:.1f}",
                         f"{plain / merged:.2f}x"])  # fmt: skip
    return tables.markdown_table(["pixels", "ratio", "edit s", "merged s", "faster"], rows)


def run_whole(model: Any, size: str, steps: int) -> Tensor:
    """Invert random latents and edit them: three rows a call, MasaCtrl in the deep half."""
    from retrace.attention.masactrl import MasaCtrl
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.inversion import invert

    generator = torch.Generator().manual_seed(0)
    height, width = (int(side) // 8 for side in size.split("x"))
    samples = torch.randn(1, 4, height, width, generator=generator)
    source, target, negative = (
        [[torch.randn(1, CAPTION, 4096, generator=generator), {}]] for _ in range(3)
    )
    trajectory = invert(model, source, {"samples": samples}, steps=steps)[0]
    trajectory = trajectory.replace(source_rule=SourceRule(pinned=True))
    controlled = with_controller(model, MasaCtrl(0.0, depth=(0.5, 1.0)))
    return run_edit(controlled, trajectory, target, negative, cfg=4.5, reconstruct=False).edited


def make_inputs(network: Any, size: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random latents, timesteps and contexts of a size in pixels, "height x width"."""
    weight = next(network.parameters())
    height, width = (int(side) // 8 for side in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, height, width, generator=generator)
    context = torch.randn(count, CAPTION, 4096, generator=generator)
    return x.to(weight), torch.full((count,), 500.0).to(weight), context.to(weight)


def make_call(network: Any, x: Tensor, ratio: float, count: int) -> Any:
    """Return Retrace's merging of one model call, all layers."""
    from retrace.attention.patch_merge import MergeCall, PatchMerge
    from retrace.attention.rows import Role, RowLayout
    from retrace.host.pixart import pixart_sites

    sites = [site for site in pixart_sites(network) if site.kind == "self"]
    layout = RowLayout(tuple(Role(*role.split()) for role in ROLES[count]), 1)
    return MergeCall(dict.fromkeys(sites, PatchMerge(ratio)), layout, 1.5, *x.shape[2:])


@contextmanager
def merging(network: Any, x: Tensor, ratio: float, count: int) -> Iterator[None]:
    """Merge in a network's layers as a run of Retrace does."""
    from retrace.host.merging_pixart import merging_layers

    with merging_layers(network, make_call(network, x, ratio, count)):
        yield


def time_layer(network: Any, x: Tensor, ratio: float, count: int, repeats: int) -> Times:
    """Time the first block's self-attention on the tokens it would see first."""
    from retrace.host.pixart import find_layer

    tokens = network.x_embedder(x)
    size = (x.shape[2] // 2, x.shape[3] // 2)
    call = make_call(network, x, ratio, count)
    site = next(iter(call.layers))
    layer, asked = find_layer(network, site), call.layers[site]
    matchings = call.match(asked, site, tokens, *size)

    def move() -> Tensor:
        return matchings[0].unmerge(matchings[0].merge(tokens))

    plain = median(lambda: layer(tokens, HW=size), repeats)
    matching = median(lambda: call.match(asked, site, tokens, *size), repeats)
    with merging(network, x, ratio, count):
        merged = median(lambda: layer(tokens, HW=size), repeats)
    return Times(plain, merged, matching, median(move, repeats))


def median(run: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a run, after one that warms up; of the CPU's own time there."""
    run()
    seconds = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        start = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return statistics.median(seconds)
