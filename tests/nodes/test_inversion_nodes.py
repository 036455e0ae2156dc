"""Inversion and trajectory nodes as the host calls them."""

import asyncio

import pytest
import torch
from helpers_host import conditioning

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def nodes(comfy):
    from retrace.nodes import RetraceExtension

    loop = asyncio.new_event_loop()
    try:
        found = loop.run_until_complete(RetraceExtension().get_node_list())
    finally:
        loop.close()
    return {node.define_schema().node_id: node for node in found}


@pytest.fixture(scope="module")
def given(tiny3, golden):
    embeddings = golden("prompt_embeddings")[0]["embeddings"]
    generator = torch.Generator().manual_seed(0)
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=generator)}
    return {"model": tiny3, "positive": conditioning(embeddings[:1]), "latent": latent,
            "steps": 3, "schedule": "diffusers"}


INVERSIONS = {
    "RetraceInvertDDIM": {"cfg": 1.0, "evaluate_at": "next", "refine": 2,
                          "refine_method": "renoise", "regularise": "fixed", "seed": 3},
    "RetraceInvertDPMSolver": {"order": 2, "cfg": 1.0, "iterations": 2, "tolerance": 1e-4,
                               "variant": "cheap"},
    "RetraceInvertEDICT": {"strength": 1.0, "mixing": 0.93, "cfg": 1.0},
    "RetraceInvertEditFriendly": {"solver": "ddpm", "cfg": 1.0, "seed": 1},
    "RetraceVirtualInversion": {"seed": 1},
}


@pytest.mark.parametrize("name", INVERSIONS)
def test_inversion_nodes_return_trajectory_noise_and_sigmas(name, nodes, given):
    schema = nodes[name].define_schema()
    asked = {**given, **INVERSIONS[name]}
    assert set(asked) <= {entry.id for entry in schema.inputs}
    trajectory, noise, sigmas = nodes[name].execute(**asked).args
    assert [output.display_name for output in schema.outputs] == ["trajectory", "noise", "sigmas"]
    assert noise["samples"].shape == given["latent"]["samples"].shape
    assert torch.equal(sigmas, trajectory.sigmas.flip(0))


def test_a_saved_trajectory_is_offered_and_loads(nodes, given, tmp_path, monkeypatch):
    import folder_paths

    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    trajectory = nodes["RetraceVirtualInversion"].execute(**given, seed=0).args[0]
    (name,) = nodes["RetraceSaveTrajectory"].execute(
        trajectory=trajectory, filename_prefix="retrace/photo"
    ).args
    load = nodes["RetraceLoadTrajectory"]
    assert name in load.define_schema().inputs[0].options
    assert load.validate_inputs(name) is True and "no trajectory" in load.validate_inputs("x")
    assert torch.equal(load.execute(file=name).args[0].latents, trajectory.latents)
    assert load.fingerprint_inputs(name) == load.fingerprint_inputs(name)
