"""Measure an exported demo model on held-out scenes, through the host's own objects."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from retrace.demo.bundle import DemoModel, load_demo
from retrace.evaluation.scenes import CheckResult, check, held_out_prompts, render
from torch import Tensor

from .host import use_host

ASPECTS = ("background", "pattern", "colour", "shape", "count", "all", "located")
BATCH = 16


def measure_autoencoder(path: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Give the PSNR in dB of round trips and the share of scenes still read correctly."""
    use_host()
    vae = load_demo(path).vae
    scenes = [scene for scene, _ in held_out_prompts(count, seed)]
    exact = np.stack([render(scene) for scene in scenes])
    with torch.inference_mode():
        output = vae.decode(vae.encode(torch.from_numpy(exact) / 255)).numpy()
    mse = np.square(output - exact / 255.0).mean((1, 2, 3))
    results = [check(picture, scene) for picture, scene in zip(output, scenes, strict=True)]
    return {
        "psnr": float(-10 * np.log10(mse).mean()),
        "exact renders read": float(
            np.mean([check(p, s).all for p, s in zip(exact, scenes, strict=True)])
        ),
        **shares(results),
    }


def measure_samples(
    path: Path,
    count: int,
    sheet: Path,
    steps: int = 50,
    cfg: float = 5.0,
    workers: int = 1,
    kind: str = "unet",
) -> dict[str, float]:
    """Sample held-out captions with Euler and give the share of each attribute that is right.

    sheet: where a picture of the first 64 samples goes. workers: one-thread processes. kind: of the
    denoiser; `path` is the file of text encoder and autoencoder in any case.
    """
    prompts = held_out_prompts(count)
    tasks = [
        (path, kind, [text for _, text in prompts[start : start + BATCH]], steps, cfg, start)
        for start in range(0, count, BATCH)
    ]
    with torch.multiprocessing.get_context("spawn").Pool(workers, _enter) as processes:
        images = np.concatenate(processes.starmap(_sample, tasks, chunksize=1))
    save_sheet(images[:64], sheet)
    return shares([check(image, scene) for image, (scene, _) in zip(images, prompts, strict=True)])


def _enter() -> None:
    torch.set_num_threads(1)
    use_host()


def _sample(
    path: Path, kind: str, texts: list[str], steps: int, cfg: float, seed: int
) -> np.ndarray:
    return sample(_load_once(path, kind), texts, steps, cfg, seed)


@lru_cache(maxsize=1)
def _load_once(path: Path, kind: str) -> DemoModel:
    return load_demo(path, kind=kind)


@torch.inference_mode()
def sample(demo: DemoModel, texts: list[str], steps: int, cfg: float, seed: int) -> np.ndarray:
    """Sample one picture a caption, "texts 128 128 3" in [0, 1]."""
    import comfy.sample

    noise = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    latent = comfy.sample.sample(
        demo.model, noise, steps, cfg, "euler", "normal", encode(demo, texts),
        encode(demo, [""] * len(texts)), torch.zeros_like(noise), disable_pbar=True, seed=seed,
    )  # fmt: skip
    return demo.vae.decode(latent).numpy()


def encode(demo: DemoModel, texts: list[str]) -> list[list[Tensor | dict]]:
    """Give one conditioning with a row for each caption; equal batches are matched row by row."""
    rows = [demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(t))[0][0] for t in texts]
    return [[torch.cat(rows), {}]]


def shares(results: Iterable[CheckResult]) -> dict[str, float]:
    """Give the share of results in which each aspect is right."""
    results = list(results)
    return {name: float(np.mean([getattr(r, name) for r in results])) for name in ASPECTS}


def save_sheet(images: np.ndarray, path: Path, columns: int = 8) -> None:
    """Save pictures in [0, 1] as one sheet, row by row."""
    images = images[: len(images) // columns * columns]
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    sheet = (np.concatenate(rows) * 255).round().astype(np.uint8)
    Image.fromarray(sheet).save(path)
