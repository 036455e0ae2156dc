"""DDIM inversion and back on held-out scenes with the trained model."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.host


def test_round_trip_error_falls_with_steps_at_first_order(comfy):
    """Euler's error halves when the steps double; the published labels keep that order."""
    from retrace.demo.bundle import load_demo
    from retrace.evaluation.scenes import render, swap_cases
    from retrace.host.editing import run_edit
    from retrace.host.inversion import invert
    from retrace.host.tokens import encode

    model, clip, vae = load_demo()
    case = swap_cases(1, seed=11)[0]
    prompt = encode(clip, case.source_caption)
    image = torch.from_numpy(render(case.source)).float()[None] / 255
    with torch.no_grad():
        latent = vae.encode(image)
        errors = []
        for steps in (20, 40, 80):
            trajectory, _, _ = invert(model, prompt, {"samples": latent}, steps=steps)
            back = run_edit(model, trajectory, prompt, None, cfg=1.0, reconstruct=False).edited
            errors.append(float((back - latent.cpu()).pow(2).mean().sqrt()))
    slope = -np.polyfit(np.log([20, 40, 80]), np.log(errors), 1)[0]
    assert 0.6 < slope < 1.6, (slope, errors)
