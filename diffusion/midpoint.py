"""The explicit midpoint rule: second order for two evaluations a step, on the way up and down."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .steps import Denoise, step_euler, to_d


def step_midpoint(x: Tensor, denoise: Denoise, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Advance x from sigma to sigma_next (either direction; sigma above 0).

    Source: Wang et al. 2024 (RF-Solver, arXiv:2411.04746), Eq. 10, whose second-order expansion
    with a finite difference over half a step is this rule; for eps- and v-models in sigma.
    """
    middle = (sigma + sigma_next) / 2
    half = step_euler(x, denoise(x, sigma), sigma, middle)
    return x + (sigma_next - sigma) * to_d(half, denoise(half, middle), middle)


class Midpoint:
    """Sampling steps by the midpoint rule; both evaluations are of the same step for controllers.

    A source that is not evaluated stands halfway between its states at the second evaluation.
    Test: tests/diffusion/test_midpoint.py
    """

    def step(
        self,
        branches: Mapping[str, Tensor],
        denoise: Any,
        sigma: Tensor,
        sigma_next: Tensor,
        memory: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return the stepped branches and the predictions of the second evaluation."""
        middle = (sigma + sigma_next) / 2
        first = denoise(branches, sigma)
        half = {
            name: step_euler(branches[name], prediction, sigma, middle)
            for name, prediction in first.items()
        }
        if "source" in branches and "source" not in half:
            below = memory["latents"][memory["steps"] - memory["step"] - 1]
            half["source"] = torch.lerp(branches["source"], below.to(branches["source"]), 0.5)
        second = denoise(half, middle)
        stepped = {
            name: branches[name] + (sigma_next - sigma) * to_d(half[name], prediction, middle)
            for name, prediction in second.items()
        }
        return stepped, second
