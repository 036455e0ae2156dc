"""Pools of rendered training scenes, kept on disk so that workers share them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
from retrace.evaluation.scenes import caption, render, sample_scene
from retrace.evaluation.scenes.captions import DETAILS

CHUNK = 500  # scenes drawn from one seed
SEED = 1_000_000  # training seeds start here; held-out seeds stay below (see scenes/cases.py)


def build_pool(folder: Path, count: int, processes: int = 2) -> None:
    """Render `count` scenes into folder/pictures.npy, with their captions in folder/captions.npy.

    pictures: uint8 "count 128 128 3". captions: text "count 4", one for each level of detail.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "captions.npy").exists():
        return
    pictures = np.lib.format.open_memmap(
        folder / "pictures.npy", "w+", np.uint8, (count, 128, 128, 3)
    )
    captions = []
    with multiprocessing.Pool(processes) as workers:
        for index, (images, texts) in enumerate(workers.imap(_draw_chunk, range(count // CHUNK))):
            pictures[index * CHUNK : (index + 1) * CHUNK] = images
            captions.extend(texts)
    pictures.flush()
    np.save(folder / "captions.npy", np.array(captions))


def _draw_chunk(index: int) -> tuple[np.ndarray, list[list[str]]]:
    rng = np.random.default_rng(SEED + index)
    scenes = [sample_scene(rng) for _ in range(CHUNK)]
    texts = [[caption(scene, details) for details in DETAILS] for scene in scenes]
    return np.stack([render(scene) for scene in scenes]), texts
