"""Train, measure and export the demo model; needs no GPU and nothing downloaded.

Stages, in order: pool, autoencoder, latents, denoiser, export, transformer, export-transformer,
evaluate; or `all`. An interrupted stage goes on from its last checkpoint when it is called again.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from pack import ROOT, load_pack

load_pack()
from training import autoencoder, denoiser, export, measure, pool, workers  # noqa: E402

STAGES = ("pool", "autoencoder", "latents", "denoiser", "export", "transformer",
          "export-transformer", "evaluate")  # fmt: skip


def main() -> None:
    """Run one stage, or all of them."""
    arguments = read_arguments()
    chosen = STAGES if arguments.stage == "all" else (arguments.stage,)
    for stage in chosen:
        globals()[f"run_{stage.replace('-', '_')}"](arguments)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, default=ROOT / ".host" / "train",
                        help="folder of pools, checkpoints and pictures")
    parser.add_argument("--scenes", type=int, default=30000, help="scenes to train on")
    parser.add_argument("--pool", default="large", help="name of the pool in the work folder")
    parser.add_argument("--autoencoder-minutes", type=float, default=16.5,
                        help="wall clock; the learning rate falls to 0 at its end")
    parser.add_argument("--denoiser-minutes", type=float, default=84.0, help="the same")
    parser.add_argument("--transformer-minutes", type=float, default=85.0, help="the same")
    parser.add_argument("--workers", type=int, default=2, help="one-thread processes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--weights", type=Path, default=ROOT / "demo" / "retrace-demo.safetensors",
                        help="file to export to, and to evaluate")
    parser.add_argument("--transformer-weights", type=Path,
                        default=ROOT / "demo" / "retrace-demo-transformer.safetensors",
                        help="file to export the transformer to")
    parser.add_argument("--kind", choices=["unet", "dit"], default="unet",
                        help="denoiser to evaluate; dit is the pack's own transformer")
    parser.add_argument("--count", type=int, default=200, help="held-out scenes to evaluate on")
    parser.add_argument("--note", default="{}", help="JSON of further metadata for the export")
    return parser.parse_args()  # fmt: skip


def run_pool(arguments: argparse.Namespace) -> None:
    """Render the training scenes."""
    pool.build_pool(arguments.work / arguments.pool, arguments.scenes, arguments.workers)


def run_autoencoder(arguments: argparse.Namespace) -> None:
    """Train the autoencoder."""
    workers.run_workers(
        autoencoder.train,
        arguments.workers,
        arguments.work / arguments.pool,
        arguments.work / "autoencoder.pt",
        arguments.autoencoder_minutes,
        arguments.seed,
    )


def run_latents(arguments: argparse.Namespace) -> None:
    """Encode the training scenes once."""
    workers.run_workers(
        denoiser.cache_latents,
        arguments.workers,
        arguments.work / arguments.pool,
        arguments.work / "autoencoder.pt",
    )


def run_denoiser(arguments: argparse.Namespace) -> None:
    """Train the denoiser and its text encoder."""
    workers.run_workers(
        denoiser.train,
        arguments.workers,
        arguments.work / arguments.pool,
        arguments.work / "denoiser.pt",
        arguments.denoiser_minutes,
        arguments.seed,
        "unet",
    )


def run_transformer(arguments: argparse.Namespace) -> None:
    """Train the transformer under the exported text encoder."""
    workers.run_workers(
        denoiser.train,
        arguments.workers,
        arguments.work / arguments.pool,
        arguments.work / "transformer.pt",
        arguments.transformer_minutes,
        arguments.seed,
        "transformer",
    )


def run_export(arguments: argparse.Namespace) -> None:
    """Write the weights that the pack loads."""
    export.export(
        arguments.work / "autoencoder.pt",
        arguments.work / "denoiser.pt",
        arguments.work / arguments.pool,
        arguments.weights,
        make_recipe(arguments),
    )


def run_export_transformer(arguments: argparse.Namespace) -> None:
    """Write the transformer's weights beside them."""
    export.export_transformer(
        arguments.work / "transformer.pt", arguments.transformer_weights, make_recipe(arguments)
    )


def make_recipe(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the metadata of an export, all text."""
    return {
        "made_by": f"tools/train_demo.py --seed {arguments.seed} --scenes {arguments.scenes}",
        "hardware": f"{arguments.workers} CPU cores, {platform.machine()}, bf16 autocast, no GPU",
        "license": "weights CC0-1.0; code GPL-3.0-or-later",
        **json.loads(arguments.note),
    }


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Print how well the exported model does on held-out scenes."""
    results = {}
    if arguments.kind == "unet":
        results["autoencoder"] = measure.measure_autoencoder(arguments.weights, arguments.count)
    sheet = arguments.work / ("samples.png" if arguments.kind == "unet" else "samples-dit.png")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    results["samples"] = measure.measure_samples(
        arguments.weights, arguments.count, sheet, workers=arguments.workers, kind=arguments.kind
    )
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
