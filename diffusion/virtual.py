"""Virtual inversion (DDCM of InfEdit): the source is re-noised exactly, the target follows it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ScheduleError
from .inversion import to_level


def place(clean: Tensor, sigma: Tensor, noise: Tensor, flow: bool) -> Tensor:
    """Return a clean latent with noise at a level."""
    return ((1 - sigma) * clean if flow else clean) + sigma * noise


def invert_virtually(
    clean: Tensor, sigmas: Tensor, seed: int, flow: bool = False
) -> tuple[Tensor, Tensor]:
    """Return states "steps+1 batch channels height width" and noises "steps ...", no model asked.

    sigmas: "steps+1" increasing. Noise k is that of the level which step k reaches; the last step
    reaches the image and adds none.
    Source: Xu et al. 2023 (InfEdit, arXiv:2312.04965), Alg. 2.
    Raises: ScheduleError for fewer than one step.
    """
    if len(sigmas) < 2:
        raise ScheduleError(f"a virtual inversion needs at least one step, got {len(sigmas) - 1}")
    generator = torch.Generator().manual_seed(seed)
    states, noises = [], []
    for sigma in sigmas.flip(0)[:-1]:
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        states.append(place(clean, sigma, noise, flow))
        noises.append(noise)
    states.append(to_level(clean, sigmas[0], flow))
    noises = [*noises[1:], torch.zeros_like(clean)]
    return torch.stack(states[::-1]), torch.stack(noises)


class Virtual:
    """Denoising diffusion consistent steps: target = image + (its prediction - the source's).

    With eta 1 the paper's consistency correction cancels to this: the clean latent is moved by
    the difference of the two predictions and noised again with the step's shared noise.
    Source: Xu et al. 2023 (InfEdit, arXiv:2312.04965), Alg. 2 with eta 1, without the mutual
    branch of its attention control.
    Test: tests/diffusion/test_virtual.py::test_the_step_is_the_papers
    """

    replays = True
    needs_source = True
    needs = ("noises",)

    def step(
        self,
        branches: Mapping[str, Tensor],
        denoise: Any,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return both branches after a step, and the clean latents they were noised from."""
        denoised = denoise(branches, sigma)
        clean, flow = memory["clean"], memory["flow"]
        images = {
            "source": clean,
            "target": clean + (denoised["target"] - denoised["source"]),
        }
        if memory["step"] == memory["steps"] - 1:
            stepped = {name: to_level(x, sigma_next, flow) for name, x in images.items()}
        else:
            noise = memory["noises"][memory["step"]]
            stepped = {name: place(x, sigma_next, noise, flow) for name, x in images.items()}
        return stepped, images
