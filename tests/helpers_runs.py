"""A small data set in PIE-Bench's format, and workers for it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from retrace.evaluation.jobs import Data, Edit, EditError, Job, load_data
from retrace.evaluation.networks import Networks
from retrace.evaluation.pie_bench import IMAGES, MAPPING
from retrace.evaluation.runner import Run
from retrace.evaluation.store import Store
from retrace.evaluation.worker import Worker

SIDE = 16
GROUPS = ("pictures",)


def write_data(folder: Path, count: int, pictures: int = 4) -> Path:
    """Write `count` tiny cases that share some pictures."""
    (folder / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(pictures):
        picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / IMAGES / f"{i}.png")
        Image.fromarray(255 - picture).save(folder / IMAGES / f"{i}_target.png")
    mapping = {
        f"{i:012d}": {
            "image_path": f"{i % pictures}.png",
            "target_path": f"{i % pictures}_target.png",
            "original_prompt": "a [cat] on a mat",
            "editing_prompt": "a [dog] on a mat",
            "editing_instruction": "make it a dog",
            "editing_type_id": str(1 + i % 2),
            "blended_word": "cat dog",
            "mask": [SIDE * 4, SIDE * 4],
            "mask_size": [SIDE, SIDE],
        }
        for i in range(count)
    }
    (folder / MAPPING).write_text(json.dumps(mapping))
    return folder


class Counting:
    """A method that shifts the source's colours and counts its calls; it fails where told to."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.calls: list[str] = []
        self.fails = fails

    def __call__(self, job: Job) -> Edit:
        self.calls.append(job.key)
        if job.key in self.fails:
            raise EditError("too difficult")
        return Edit(job.source // 2 + 40, 1.5, 20)


def make_run(folder: Path, data: Data | Path, methods: dict, **changes) -> tuple[Run, Worker]:
    """Return a run and the worker for it."""
    data = load_data(data) if isinstance(data, Path) else data
    run = Run(data, list(methods), changes.pop("groups", GROUPS), Store(folder), **changes)
    return run, Worker(methods, changes.pop("networks", Networks(None)))
