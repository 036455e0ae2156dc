"""Every workflow against a live server: all convert, and those for the demo model run."""

import json

import pytest
from hosting.layout import REPOSITORY
from hosting.pictures import picture_nodes
from workflow_api import to_api

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))


def load(file, object_info) -> dict:
    return to_api(json.loads(file.read_text()), object_info)


def needs_weights(prompt: dict) -> bool:
    return any("Loader" in node["class_type"] for node in prompt.values())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_gives_every_required_input(file, object_info):
    for key, node in load(file, object_info).items():
        required = object_info[node["class_type"]]["input"].get("required", {})
        assert required.keys() <= node["inputs"].keys(), f"node {key}"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_runs(file, object_info, client, run_workflow):
    prompt = load(file, object_info)
    if needs_weights(prompt):
        pytest.skip("its checkpoint does not come with the pack")
    for node in prompt.values():
        if node["class_type"].startswith("RetraceInvert") and "steps" in node["inputs"]:
            node["inputs"]["steps"] = 4
    run = run_workflow(prompt)
    shown = picture_nodes(prompt)
    assert "edit" in shown
    for node in shown.values():
        assert client.download(run.outputs[node]["images"][0]).startswith(b"\x89PNG")
