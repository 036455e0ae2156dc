"""What holding the picture costs: seconds and peak memory of one edit, against sampling without.

Compared are plain sampling, Retrace's Prompt-to-Prompt, the same edit with every attention map
made in memory, and the way it is published: inversion, offset pass, edit, four rows everywhere.
Weights are random, so only costs mean anything; that both edits give the same latent is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from retrace.evaluation import tables
from training.host import use_host

WINDOWS = {"cross": 0.4, "self": 0.6}
OPEN = {"cross": 1.0, "self": 1.0}
"""Every step controlled."""

CFG = 7.5
LIMITS = {"same": 1.10, "published": 0.45, "replay": 1.7, "memory": 1.05}


class Cost(NamedTuple):
    """What one way takes: seconds, row-forwards, and its result."""

    seconds: float
    rows: int
    latent: torch.Tensor


Replays = tuple[str, Cost, Cost, float, float]
"""Controller, live edit, replayed edit, the capture's seconds and megabytes."""


@dataclass
class Bench:
    """Model, prompts and trajectory of one comparison. dtype: the model's; None for its usual."""

    architecture: str
    size: int
    steps: int
    windows: dict[str, float] = field(default_factory=lambda: WINDOWS)
    dtype: torch.dtype | None = None
    seed: int = 0
    model: Any = field(init=False)
    prompts: dict[str, list] = field(init=False)
    trajectory: Any = field(init=False)

    def __post_init__(self) -> None:
        from retrace.diffusion.trajectory import SourceRule

        from . import _models

        self.model = _models.make_model(self.architecture, self.seed, self.dtype)
        self.prompts = _models.make_prompts(self.architecture)
        self.trajectory = self.invert(self.model).replace(source_rule=SourceRule(pinned=True))

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    def invert(self, model: Any) -> Any:
        """Return a DDIM inversion of a random latent."""
        from retrace.host.inversion import invert

        side = self.size // 8
        generator = torch.Generator().manual_seed(self.seed)
        samples = torch.randn(1, 4, side, side, generator=generator)
        return invert(model, self.prompts["source"], {"samples": samples}, steps=self.steps)[0]

    def edit(
        self, *controllers: Any, store: Any = None, cfg: float = CFG
    ) -> tuple[torch.Tensor, int]:
        """Return a Retrace edit's latent and its row-forwards."""
        from retrace.host.editing import run_edit, with_controller

        model = self.model
        for controller in controllers:
            model = with_controller(model, controller, store)
        result = run_edit(
            model, self.trajectory, self.prompts["target"], self.prompts["negative"], cfg=cfg
        )
        return result.edited, result.report["row_forwards"]


def make_pair() -> Any:
    """Return two prompts of five words that differ in one, tokens numbered by hand."""
    from retrace.attention.prompt_to_prompt import PromptPair
    from retrace.attention.tokens import Token, TokenizedPrompt

    def tokenized(text: str, changed: int) -> TokenizedPrompt:
        tokens, at = [Token(49406)], 0
        for number, word in enumerate(text.split()):
            tokens.append(Token(changed if number == 1 else number, at, at + len(word)))
            at += len(word) + 1
        length = len(tokens) + 1
        return TokenizedPrompt(text, (*tokens, *[Token(49407)] * (77 - len(tokens))), length)

    return PromptPair(tokenized("a cat on a bench", 100), tokenized("a dog on a bench", 200))


def prompt_to_prompt(windows: dict[str, float]) -> Any:
    """Return the controller under test, with these windows."""
    from retrace.attention.prompt_to_prompt import PromptToPrompt

    return PromptToPrompt(
        make_pair(), "replace", (0.0, windows["cross"]), (0.0, windows["self"])
    )


def plain_rows(bench: Bench) -> tuple[torch.Tensor, int]:
    """Evaluate the very rows of our edit without a controller."""
    from retrace.attention.plan import RunFacts
    from retrace.attention.rows import SOURCE_COND, TARGET_COND, TARGET_UNCOND
    from retrace.attention.run import EditRun
    from retrace.host.guider import Rows
    from retrace.host.model import attention_sites

    from . import _textbook as textbook

    side = bench.size // 8
    facts = RunFacts(bench.steps, 0, side, side, 1, attention_sites(bench.model))
    run = EditRun(facts, (prompt_to_prompt(bench.windows).prepare(facts),))
    trajectory = bench.trajectory

    def walk(guider: Any, options: dict, device: torch.device) -> torch.Tensor:
        states = trajectory.latents.to(device)
        target = states[-1]
        for number in range(trajectory.steps):
            index = trajectory.steps - number
            sigma, after = (trajectory.sigmas[i].to(device) for i in (index, index - 1))
            rows = [Rows(TARGET_UNCOND, "negative", target), Rows(TARGET_COND, "target", target)]
            if run.source_roles(number):
                rows.insert(1, Rows(SOURCE_COND, "source", states[index]))
            out = guider.denoise_rows(rows, sigma, options)
            denoised = torch.lerp(out[TARGET_UNCOND], out[TARGET_COND], CFG)
            target = textbook.step(target, denoised, sigma, after)
        return target

    return textbook.run_walk(bench.model, bench.prompts, trajectory, walk)


def textbook_edit(bench: Bench, published: bool) -> tuple[torch.Tensor, int]:
    """Edit with materialised maps; the published way inverts and measures offsets before."""
    from retrace.host.model import attention_sites

    from . import _textbook as textbook

    sites, rows, offsets = attention_sites(bench.model), 0, None
    if published:
        plain = textbook.with_maps(bench.model, sites, textbook.plain_map)
        trajectory = bench.invert(plain)
        rows, offsets = dict(trajectory.report)["row_forwards"], []
        walk = textbook.offset_walk(trajectory, CFG, offsets)
        rows += textbook.run_walk(plain, bench.prompts, trajectory, walk)[1]
    else:
        trajectory = bench.trajectory
    alphas = torch.zeros(bench.steps + 1, 77)
    alphas[: int(bench.windows["cross"] * (bench.steps + 1))] = 1
    controller = textbook.Controller(
        torch.eye(77), alphas, int(bench.windows["self"] * bench.steps), (bench.size // 16) ** 2
    )
    edited = textbook.with_maps(bench.model, sites, controller)
    walk = textbook.edit_walk(trajectory, CFG, controller, offsets)
    latent, own = textbook.run_walk(edited, bench.prompts, trajectory, walk)
    return latent, rows + own


def whole_edit(bench: Bench) -> tuple[torch.Tensor, int]:
    """Invert and edit, our way."""
    trajectory = bench.invert(bench.model)
    latent, rows = bench.edit(prompt_to_prompt(bench.windows))
    return latent, rows + dict(trajectory.report)["row_forwards"]


PLAIN, SAME, OURS = "plain sampling, two rows", "plain sampling, our rows", "our P2P edit"
TEXTBOOK, PUBLISHED = "textbook P2P edit", "published way, inversion included"
WHOLE, REPLAY = "our way, inversion included", "our P2P edit, replayed"


def ways(bench: Bench, store: Any) -> dict[str, Callable[[], tuple[torch.Tensor, int]]]:
    """Return everything that is compared, in the order of the table."""
    controller = prompt_to_prompt(bench.windows)
    return {
        PLAIN: bench.edit,
        SAME: lambda: plain_rows(bench),
        OURS: lambda: bench.edit(controller),
        REPLAY: lambda: bench.edit(controller, store=store),
        TEXTBOOK: lambda: textbook_edit(bench, published=False),
        WHOLE: lambda: whole_edit(bench),
        PUBLISHED: lambda: textbook_edit(bench, published=True),
    }


def timed(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Run once and time it: by the clock on a GPU, in CPU seconds of all threads otherwise.

    CPU seconds do not grow when other programs take the cores.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronise(device)
    started = clock()
    result = run()
    synchronise(device)
    return result, clock() - started


def measure(run: Callable[[], tuple[torch.Tensor, int]], device: torch.device) -> Cost:
    """Run one way once."""
    (latent, rows), seconds = timed(run, device)
    return Cost(seconds, rows, latent.cpu())


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_ways(options: argparse.Namespace) -> dict[str, Cost]:
    """Return the fastest of several rounds of every way."""
    from retrace.host.capture import capture_attention

    bench = Bench(options.arch, options.size, options.steps)
    store, _ = capture_attention(
        bench.model, bench.trajectory, dtype="fp32", window=(0.0, WINDOWS["self"]),
        budget_mb=65536, place="cpu" if bench.device.type == "cpu" else "gpu",
    )
    best: dict[str, Cost] = {}
    compared = ways(bench, store)
    for number in range(options.rounds):
        for name, run in compared.items():
            if number and name in (TEXTBOOK, PUBLISHED) and not options.all_rounds:
                continue  # the slow ones: their ratios are far from the limits
            cost = measure(run, bench.device)
            if name not in best or cost.seconds < best[name].seconds:
                best[name] = cost
    return best


def peaks(options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak memory of single edits, over one step with every window open."""
    from ._memory import peak_memory

    dtype = getattr(torch, options.dtype) if options.dtype else None
    bench = Bench(options.arch, options.size, 1, OPEN, dtype)
    compared = ways(bench, None)
    weights = bench.model.model_size()
    names = (SAME, OURS) if options.only_memory else (PLAIN, SAME, OURS, TEXTBOOK)
    return {name: peak_memory(compared[name], bench.device, weights) for name in names}


def live_and_replayed(options: argparse.Namespace) -> list[Replays]:
    """Return a live and a replayed edit of controllers that read the source at most steps."""
    from retrace.attention.masactrl import MasaCtrl
    from retrace.host.capture import capture_attention

    bench = Bench(options.arch, options.size, options.steps)
    place = "cpu" if bench.device.type == "cpu" else "gpu"
    whole = prompt_to_prompt(OPEN)
    found = []
    for name, controller, cfg, negative in (
        ("P2P, windows of 1", whole, CFG, None),
        ("P2P, windows of 1, cfg 1", whole, 1.0, None),
        ("MasaCtrl", MasaCtrl(start_step=0.08), CFG, bench.prompts["negative"]),
    ):
        edit = partial(bench.edit, controller, cfg=cfg)
        capture = partial(
            capture_attention, bench.model, bench.trajectory, dtype="fp32", budget_mb=65536,
            place=place, kind="self" if negative else "all", negative=negative,
        )
        (store, _), seconds = timed(capture, bench.device)
        live = measure(edit, bench.device)
        replayed = measure(partial(edit, store=store), bench.device)
        found.append((name, live, replayed, seconds, store.size_bytes / 2**20))
    return found


def cost_table(costs: dict[str, Cost], memory: dict[str, Any]) -> str:
    """Write the table of all ways."""
    rows = [
        [
            name,
            str(cost.rows),
            f"{cost.seconds:.2f}",
            f"{1000 * cost.seconds / cost.rows:.0f}",
            f"{memory[name].run:.0f}" if name in memory else "–",
            f"{memory[name].total:.0f}" if name in memory else "–",
        ]
        for name, cost in costs.items()
    ]
    headers = ["way", "row-forwards", "seconds", "ms a row", "peak MB", "peak MB, weights too"]
    return tables.markdown_table(headers, rows)


def verdict(name: str, value: float, limit: float, below: bool = True) -> str:
    """Say a ratio, its aim, and whether it is reached."""
    reached = value <= limit if below else value >= limit
    word = "at most" if below else "at least"
    return f"- {name}: {value:.2f}, aim {word} {limit:g}, {'reached' if reached else 'missed'}"


def verdicts(costs: dict[str, Cost], memory: dict[str, Any]) -> list[str]:
    """Compare with the aims, all from this one run."""
    ours, textbook = costs[OURS].latent, costs[TEXTBOOK].latent
    apart = float((ours - textbook).norm() / textbook.norm())
    lines = [
        f"- our edit and the textbook's differ by {apart:.1e} of the latent's norm, the replayed "
        f"and the live one by {float((costs[REPLAY].latent - ours).norm() / ours.norm()):.1e}",
        verdict("our edit against plain sampling of the same rows",
                costs[OURS].seconds / costs[SAME].seconds, LIMITS["same"]),
        verdict("our way against the published way, in all",
                costs[WHOLE].seconds / costs[PUBLISHED].seconds, LIMITS["published"]),
    ]  # fmt: skip
    return [*lines, *memory_lines(memory)]


def memory_lines(memory: dict[str, Any]) -> list[str]:
    """Compare the peaks of our edit and of plain sampling, weights counted and not."""
    if not memory:
        return []
    ours, plain = memory[OURS], memory[SAME]
    line = verdict("peak memory against plain sampling of the same rows",
                   ours.total / plain.total, LIMITS["memory"])  # fmt: skip
    return [f"{line} ({ours.total:.0f} against {plain.total:.0f} MB with the weights; "
            f"{ours.run:.0f} against {plain.run:.0f} MB, {ours.run / plain.run:.2f}, without)"]


def replay_lines(found: list[Replays]) -> list[str]:
    """Compare two live edits with two replayed ones."""
    lines = []
    for name, live, replayed, capture, megabytes in found:
        seconds = live.seconds / replayed.seconds
        gain = live.seconds - replayed.seconds
        lines.append(
            verdict(f"two live edits against two replayed ones, {name}", seconds,
                    LIMITS["replay"], below=False)
            + f" ({live.rows} against {replayed.rows} row-forwards each: "
            f"{live.rows / replayed.rows:.2f} is the most there is; the capture takes "
            f"{capture:.1f} s and {megabytes:.0f} MB once, as much as "
            f"{capture / max(gain, 1e-9):.1f} replays save)"
        )  # fmt: skip
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the table and the ratios; return the exit status."""
    use_host()
    use_fused_attention()
    options = read_arguments(arguments)
    print(describe(options))
    with torch.inference_mode():
        memory = {} if options.no_memory else peaks(options)
        if options.only_memory:
            print("\n".join(memory_lines(memory)))
            return 0
        costs = time_ways(options)
        found = [] if options.no_replay else live_and_replayed(options)
    print()
    print(cost_table(costs, memory))
    print()
    print("\n".join(verdicts(costs, memory)))
    print("\n".join(replay_lines(found)))
    return 0


def use_fused_attention() -> None:
    """Choose torch's fused attention, as hosts with a GPU do; before the host's models load."""
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True


def describe(options: argparse.Namespace) -> str:
    """Say what is run on what."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"the CPU, {torch.get_num_threads()} threads, in CPU seconds"
    if options.only_memory:
        dtype = options.dtype or "the host's number format"
        return f"{options.arch}, {options.size} x {options.size}, one step of three rows, {dtype}"
    return (
        f"{options.arch}, {options.size} x {options.size}, {options.steps} steps, cfg {CFG}, "
        f"windows cross {WINDOWS['cross']} and self {WINDOWS['self']}, fastest of "
        f"{options.rounds} rounds, on {device}"
    )


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    from ._models import ARCHITECTURES

    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="bench attention", description=__doc__)
    parser.add_argument("--arch", choices=list(ARCHITECTURES),
                        default="sd15" if gpu else "sd15-reduced")
    parser.add_argument("--size", type=int, default=512, help="pixels of the square image (512)")
    parser.add_argument("--steps", type=int, default=50 if gpu else 5, help="50; 5 on a CPU")
    parser.add_argument("--rounds", type=int, default=3 if gpu else 2,
                        help="of which the fastest counts (3; 2 on a CPU)")
    parser.add_argument("--all-rounds", action="store_true",
                        help="run the textbook ways in every round too, not in the first only")
    parser.add_argument("--only-memory", action="store_true",
                        help="measure the peaks of our edit and of plain sampling, no seconds")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="of the model whose memory is measured (the host's choice)")
    parser.add_argument("--no-memory", action="store_true", help="measure seconds only")
    parser.add_argument("--no-replay", action="store_true", help="leave MasaCtrl's replay out")
    return parser.parse_args(arguments)  # fmt: skip


