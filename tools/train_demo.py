"""Train, measure and export the demo model; needs no GPU and nothing downloaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from pack import ROOT, load_pack

load_pack()
WORK = ROOT / ".host" / "train"


def main() -> None:
    """Read the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("pool", "autoencoder", "latents", "denoiser"))
    parser.add_argument("--work", type=Path, default=WORK, help="folder of pools and checkpoints")
    parser.add_argument("--scenes", type=int, default=16000, help="scenes in the pool")
    parser.add_argument("--pool", default="pool", help="name of the pool")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time, wall clock")
    parser.add_argument("--workers", type=int, default=2, help="one-thread processes")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    from training import autoencoder, denoiser, pool, workers

    folder = arguments.work / arguments.pool
    if arguments.stage == "pool":
        pool.build_pool(folder, arguments.scenes, arguments.workers)
    elif arguments.stage == "autoencoder":
        checkpoint = arguments.work / "autoencoder.pt"
        workers.run_workers(
            autoencoder.train,
            arguments.workers,
            folder,
            checkpoint,
            arguments.minutes,
            arguments.seed,
        )
    elif arguments.stage == "latents":
        checkpoint = arguments.work / "autoencoder.pt"
        workers.run_workers(denoiser.cache_latents, arguments.workers, folder, checkpoint)
    elif arguments.stage == "denoiser":
        checkpoint = arguments.work / "denoiser.pt"
        workers.run_workers(
            denoiser.train,
            arguments.workers,
            folder,
            checkpoint,
            arguments.minutes,
            arguments.seed,
        )


if __name__ == "__main__":
    main()
