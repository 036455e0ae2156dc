"""Metrics that need a network: structure distance, LPIPS, CLIP similarity.

Weights are read from one folder, never downloaded: `dino-vitb8` and `clip-vit-large-patch14` as
transformers saves them, `squeezenet1_1*.pth` as torchvision does. What is absent is told.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .jobs import Job
from .measures import CORRECTED, PUBLISHED, keep_of
from .scores import to_pictures

DINO, CLIP, SQUEEZE = "dino-vitb8", "clip-vit-large-patch14", "squeezenet1_1*.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIDE = 224
GROUPS = {"distance": "structure distance", "lpips": "LPIPS", "clip": "CLIP similarity"}


class Networks:
    """The networks under a folder (None: there is none), loaded when first asked for."""

    def __init__(self, folder: Path | None, device: str = "cpu") -> None:
        self.folder, self.device = folder, device

    @cached_property
    def absent(self) -> Mapping[str, str]:
        """Name the groups of metrics that cannot be computed, each with its reason."""
        if self.folder is None:
            return dict.fromkeys(GROUPS, "no folder of networks was named")
        found = {}
        for group, name in (("distance", DINO), ("clip", CLIP)):
            if not (self.folder / name / "config.json").is_file():
                found[group] = f"{self.folder} has no {name}"
        if not list(self.folder.glob(SQUEEZE)):
            found["lpips"] = f"{self.folder} has no {SQUEEZE}"
        elif importlib.util.find_spec("torchmetrics") is None:
            found["lpips"] = "torchmetrics is not installed"
        return found

    @property
    def groups(self) -> tuple[str, ...]:
        """Name the groups of metrics that can be computed."""
        return tuple(name for name in GROUPS if name not in self.absent)

    @torch.inference_mode()
    def measure(self, group: str, job: Job, edited: np.ndarray) -> dict[str, float]:
        """Compute one group's metrics; edited: uint8 "height width 3", of the source's size."""
        return getattr(self, group)(job, edited)

    # structure distance

    @cached_property
    def dino(self) -> torch.nn.Module:
        """The vision transformer; its last layer's keys are read."""
        from transformers import ViTModel

        return self._load(ViTModel, DINO, add_pooling_layer=False)

    def distance(self, job: Job, edited: np.ndarray) -> dict[str, float]:
        """Compare the self-similarity of DINO's keys of the whole pictures.

        Source: Tumanyan et al. 2022 (arXiv:2201.00424), Eq. 2, as PnPInversion's evaluation runs
        it: on values of 0 to 255 where the network wants 0 to 1, reduced without antialiasing.
        Corrected: values of 0 to 1, antialiased.
        """
        pair = to_pictures([job.source, edited])
        return {
            f"{PUBLISHED}_distance": self._distance(255 * pair, antialias=False),
            f"{CORRECTED}_distance": self._distance(pair, antialias=True),
        }

    def _distance(self, pair: Tensor, antialias: bool) -> float:
        size = (DINO_SIDE, DINO_SIDE)
        pair = F.interpolate(pair, size, mode="bilinear", antialias=antialias)
        mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
        first, second = map(self_similarity, self._keys((pair - mean) / std))
        return float(F.mse_loss(first, second))

    def _keys(self, pictures: Tensor) -> Tensor:
        """Return the keys of the last layer, "2 tokens dim"."""
        caught: list[Tensor] = []
        layers = [
            module
            for name, module in self.dino.named_modules()
            if name.endswith(("attention.key", "k_proj"))  # transformers 4 and 5
        ]
        hook = layers[-1].register_forward_hook(lambda module, given, keys: caught.append(keys))
        try:
            self.dino(pictures.to(self.device), interpolate_pos_encoding=True)
        finally:
            hook.remove()
        return caught[0].cpu()

    # LPIPS

    @cached_property
    def squeeze(self) -> torch.nn.Module:
        """LPIPS on SqueezeNet, a map of the picture's size; its heads come with torchmetrics."""
        from torchmetrics.functional.image.lpips import _LPIPS

        network = _LPIPS(pretrained=True, net="squeeze", pnet_rand=True, spatial=True)
        (file, *_) = sorted(self.folder.glob(SQUEEZE))
        weights = torch.load(file, map_location="cpu", weights_only=True)
        own = network.net.state_dict()  # slices.SLICE.LAYER..., layers numbered as in torchvision
        network.net.load_state_dict(
            {name: weights["features." + name.split(".", 2)[2]] for name in own}
        )
        return network.eval().to(self.device)

    def lpips(self, job: Job, edited: np.ndarray) -> dict[str, float]:
        """Compare SqueezeNet's features where the picture must stay.

        Source: Zhang et al. 2018 (arXiv:1801.03924), as PnPInversion's evaluation runs it: the
        rest blanked, mean over the whole picture. Corrected: the rest filled with the source in
        both pictures, mean over the pixels that must stay.
        """
        keep = keep_of(job)
        if keep is None or not keep.any():
            return dict.fromkeys((f"{PUBLISHED}_lpips", f"{CORRECTED}_lpips"), math.nan)
        source, picture = to_pictures([job.source]), to_pictures([edited])
        published = self._lpips(keep * source, keep * picture, pooled=True)
        filled = torch.where(keep[:, None] > 0, picture, source)
        corrected = (self._lpips(source, filled) * keep[:, None]).sum() / keep.sum()
        return {f"{PUBLISHED}_lpips": float(published), f"{CORRECTED}_lpips": float(corrected)}

    def _lpips(self, first: Tensor, second: Tensor, pooled: bool = False) -> Tensor:
        self.squeeze.spatial = not pooled
        return self.squeeze(first.to(self.device), second.to(self.device), normalize=True).cpu()

    # CLIP

    @cached_property
    def clip_model(self) -> torch.nn.Module:
        """CLIP's two towers."""
        from transformers import CLIPModel

        return self._load(CLIPModel, CLIP)

    @cached_property
    def clip_processor(self) -> Any:
        """What prepares pictures and texts for CLIP."""
        from transformers import CLIPProcessor

        return CLIPProcessor.from_pretrained(self.folder / CLIP, local_files_only=True)

    def clip(self, job: Job, edited: np.ndarray) -> dict[str, float]:
        """Compare the edited picture, and its edited part, with the target prompt.

        Source: Hessel et al. 2021 (arXiv:2104.08718) with weight 100, as torchmetrics has it;
        PnPInversion blanks what must stay for the edited part. Corrected: the part's bounding box.
        """
        whole = self._clip(edited, job.target_prompt)
        part = box = math.nan
        if job.mask is not None:
            part = self._clip(edited * job.mask[..., None].astype(np.uint8), job.target_prompt)
            box = self._clip(bounding_box(edited, job.mask), job.target_prompt)
        return {
            f"{PUBLISHED}_clip_whole": whole, f"{PUBLISHED}_clip_edited": part,
            f"{CORRECTED}_clip_whole": whole, f"{CORRECTED}_clip_edited": box,
        }  # fmt: skip

    def _clip(self, picture: np.ndarray, text: str) -> float:
        given = self.clip_processor(
            text=[text], images=[picture], return_tensors="pt", padding=True, truncation=True
        ).to(self.device)
        found = self.clip_model(**given)
        return max(100 * float(F.cosine_similarity(found.image_embeds, found.text_embeds)), 0.0)

    def _load(self, kind: Any, name: str, **options: Any) -> torch.nn.Module:
        network = kind.from_pretrained(self.folder / name, local_files_only=True, **options)
        return network.eval().to(self.device)


def self_similarity(keys: Tensor) -> Tensor:
    """Return the cosine of every pair of tokens, "tokens tokens", of keys "tokens dim"."""
    unit = F.normalize(keys.float(), dim=-1)
    return unit @ unit.T


def bounding_box(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut the part that a mask marks, but for its forced border; all if there is none."""
    inner = mask.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    rows, columns = np.flatnonzero(inner.any(1)), np.flatnonzero(inner.any(0))
    if not len(rows):
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
