"""Numbers of the papers' own code: Plug-and-Play with its two windows."""

import pytest
import torch
from helpers_host import conditioning, rms

pytestmark = pytest.mark.host

SCALE = 0.18215


@pytest.fixture(scope="module")
def embeddings(golden):
    tensors, texts = golden("prompt_embeddings")
    return {text: conditioning(tensors["embeddings"][i : i + 1]) for i, text in enumerate(texts)}


def published_trajectory(model, tensors, sigmas, source):
    """Return the states that the published edit used as source, as a pinned trajectory.

    The DDIM variant passes the reversed reconstruction, one state short, so that its sampling
    starts from the state before the noisiest under the noisiest's label.
    """
    from retrace.diffusion.trajectory import SourceRule, Trajectory
    from retrace.host.model import model_facts

    used = tensors["source_latent_used"].flip(0)  # level 1 to T
    z = torch.cat([tensors["inverted_x"][:1], used])
    return Trajectory(
        latents=z * (1 + sigmas[:, None, None, None, None] ** 2).sqrt(),
        sigmas=sigmas,
        clean=z[0] / SCALE,
        model=model_facts(model),
        source=source,
        source_rule=SourceRule(pinned=True),
    )


@pytest.mark.parametrize("name", ["directinversion+pnp", "ddim+pnp"])
def test_edit_equals_the_published_one(name, tiny3, golden, embeddings):
    from retrace.attention.plug_and_play import PlugAndPlay
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.model import make_grid

    tensors, facts = golden(f"pnp/tiny3_10/{name}")
    sigmas = make_grid(tiny3, "diffusers", 10)
    negative, positive = tensors["text_embeds"].split(1)
    controller = PlugAndPlay(facts["pnp_f_t"], facts["pnp_attn_t"])
    result = run_edit(
        with_controller(tiny3, controller),
        published_trajectory(
            tiny3, tensors, sigmas, conditioning(tensors["pnp_guidance_embeds"])
        ),
        conditioning(positive),
        conditioning(negative),
        cfg=facts["guidance_scale"],
        reconstruct=False,
    )
    assert rms(result.edited * SCALE, tensors["edit_final"]) <= 5e-4
    # one source row beside the target's two while something is injected, none afterwards
    assert result.report["row_forwards"] == 8 * 3 + 2 * 2


def test_inversion_gives_the_states_that_direct_inversion_injects(tiny3, golden, embeddings):
    from retrace.host.inversion import invert

    tensors, facts = golden("pnp/tiny3_10/directinversion+pnp")
    latent = {"samples": golden("inputs")[0]["z0_tiny3"] / SCALE}
    trajectory = invert(tiny3, embeddings[facts["prompt_src"]], latent, steps=10)[0]
    z = trajectory.latents / (1 + trajectory.sigmas[:, None, None, None, None] ** 2).sqrt()
    assert (z - tensors["inverted_x"]).abs().max() <= 1e-4
