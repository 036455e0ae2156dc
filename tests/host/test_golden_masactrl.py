"""Numbers of the papers' own code: MasaCtrl from step 4 and layer 5 of 11."""

import pytest
import torch
from helpers_host import conditioning, rms

pytestmark = pytest.mark.host

SCALE = 0.18215
TARGET = "a dog sitting on a bench"


@pytest.fixture(scope="module")
def embeddings(golden):
    tensors, texts = golden("prompt_embeddings")
    return {text: conditioning(tensors["embeddings"][i : i + 1]) for i, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("name", "pinned"), [("directinversion+masactrl", True), ("ddim+masactrl", False)]
)
def test_edit_equals_the_published_one(name, pinned, tiny3, golden, embeddings):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.inversion import invert

    tensors, facts = golden(f"masactrl/tiny3_10/{name}__step4_layer5")
    latent = {"samples": golden("inputs")[0]["z0_tiny3"] / SCALE}
    trajectory = invert(tiny3, embeddings[""], latent, steps=10)[0]  # the source prompt is ""
    z = trajectory.latents / (1 + trajectory.sigmas[:, None, None, None, None] ** 2).sqrt()
    assert (z - tensors["z_inv"]).abs().max() <= 1e-4
    kwargs = facts["kwargs"]
    controller = MasaCtrl(start_step=kwargs["step"], start_layer=kwargs["layper"])
    result = run_edit(
        with_controller(tiny3, controller),
        trajectory.replace(source_rule=SourceRule(pinned=pinned)),
        embeddings[facts["prompt_tar"]],
        embeddings[""],
        cfg=facts["guidance_scale"],
    )
    final = tensors["masactrl_final"]
    assert rms(result.source * SCALE, final[:1]) <= 5e-4
    assert rms(result.edited * SCALE, final[1:]) <= 5e-4
    assert not torch.equal(result.edited, result.source)
