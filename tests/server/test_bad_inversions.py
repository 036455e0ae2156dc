"""Bad trajectories and cancelled optimisations on a live server: told, and the server goes on."""

import threading

import pytest
from hosting.errors import RunError
from retrace.diffusion.trajectory import ModelFacts, Trajectory
from retrace.diffusion.trajectory_file import to_bytes


def scene(**more) -> dict:
    """Return a graph of the demo model, its scene, both prompts and a short inversion."""
    def text(node: str, given) -> dict:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": given}}

    shared = {"model": ["model", 0], "positive": ["source", 0], "latent": ["latent", 0]}
    return {
        "model": {"class_type": "RetraceDemoModel", "inputs": {}},
        "scene": {"class_type": "RetraceDemoScene", "inputs": {"scene": "colour"}},
        "latent": {"class_type": "VAEEncode",
                   "inputs": {"pixels": ["scene", 0], "vae": ["model", 2]}},
        "source": text("source", ["scene", 1]),
        "empty": text("empty", ""),
        "inversion": {"class_type": "RetraceInvertDDIM",
                      "inputs": {**shared, "steps": 3, "schedule": "diffusers", "cfg": 1.0,
                                 "evaluate_at": "next", "refine": 0}},
        **more,
    }


def viewed(trajectory: str, vae: str = "model") -> dict:
    return {"class_type": "RetraceTrajectoryViewer",
            "inputs": {"trajectory": [trajectory, 0], "vae": [vae, 2], "frames": 2}}


def null_text(**changes) -> dict:
    return {"class_type": "RetraceInvertNullText", "inputs": {
        "model": ["model", 0], "trajectory": ["inversion", 0], "negative": ["empty", 0],
        "cfg": 4.0, "inner_steps": 2, "learning_rate": 0.01, "early_stop": 0.0, **changes,
    }}


def goes_on(run_workflow) -> bool:
    return bool(run_workflow(scene(show=viewed("inversion"))).outputs["show"]["images"])


def test_damaged_and_foreign_files_are_refused_with_a_sentence(server, run_workflow):
    import torch

    states = torch.randn(3, 1, 4, 16, 16)
    data = to_bytes(Trajectory(states, torch.tensor([0.0, 1.0, 2.0]), states[0],
                               ModelFacts("SDXL:UNetModel", "eps", "SDXL", 4)))
    files = {"cut": (data[: len(data) // 2], "cut short|damaged"),
             "altered": (data[:-1] + bytes([data[-1] ^ 1]), "altered"),
             "foreign": (data, "SDXL")}
    folder = server.base / "input" / "bad"
    folder.mkdir(parents=True, exist_ok=True)
    edit = {"class_type": "RetraceEditSampler", "inputs": {
        "model": ["model", 0], "trajectory": ["load", 0], "positive": ["source", 0],
        "negative": ["empty", 0], "cfg": 1.0, "start_step": 0}}
    decode = {"class_type": "VAEDecode", "inputs": {"samples": ["edit", 0], "vae": ["model", 2]}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}
    for name, (content, words) in files.items():
        file = folder / f"{name}.trajectory.safetensors"
        file.write_bytes(content)
        load = {"class_type": "RetraceLoadTrajectory", "inputs": {"file": f"bad/{file.name}"}}
        with pytest.raises(RunError, match=words):
            run_workflow(scene(load=load, edit=edit, decode=decode, show=shown))
        file.unlink()  # other tests read what the server offers
    assert goes_on(run_workflow)


def test_zero_inner_steps_and_a_negative_of_nothing_are_refused(run_workflow):
    for bad in ({"inner_steps": 0}, {"learning_rate": -1.0}, {"cfg": 1.0}):
        with pytest.raises(RunError, match="RetraceInvertNullText"):
            run_workflow(scene(null=null_text(**bad), show=viewed("null")))
    assert goes_on(run_workflow)


def test_a_cancelled_optimisation_leaves_the_model_as_it_was(client, run_workflow):
    graph = scene(null=null_text(inner_steps=1000), show=viewed("null"))

    def cancel(kind: str, data: dict) -> None:
        if kind == "progress" and data.get("node") == "null":
            client.interrupt()

    timer = threading.Timer(60, client.interrupt)
    timer.start()
    with pytest.raises(RunError, match="interrupted"):
        client.run(graph, cancel)
    timer.cancel()
    short = run_workflow(scene(null=null_text(), show=viewed("null")))
    assert short.outputs["show"]["images"] and goes_on(run_workflow)
