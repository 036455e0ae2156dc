"""Every workflow runs on a live server; the demo model takes the place of a checkpoint."""

import json

import pytest
from hosting.layout import REPOSITORY
from workflow_api import to_api

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
FEWER = {"steps": 4, "inner_steps": 2, "start_step": 0}  # as few as every window survives
pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def photo(client, tmp_path_factory) -> str:
    """A picture in the server's input folder, of no size that a model takes."""
    from PIL import Image
    from retrace.demo.scenes import SCENES

    file = tmp_path_factory.mktemp("photo") / "a photo.png"
    picture = Image.fromarray(SCENES["colour"].image).resize((200, 160)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))  # what makes LoadImage's mask
    picture.save(file)
    return client.upload_image(file)


def replace_loaders(prompt: dict) -> None:
    """Put the demo's transformer in the place of a PixArt that is loaded from three files."""
    outputs = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    moved = {
        name: outputs[node["class_type"]]
        for name, node in prompt.items()
        if node["class_type"] in outputs
    }
    for name in moved:
        prompt[name] = {"class_type": "RetraceDemoModel", "inputs": {"network": "dit"}}
    for node in prompt.values():
        for field, link in node["inputs"].items():
            if isinstance(link, list) and link[0] in moved:
                node["inputs"][field] = [link[0], moved[link[0]]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflow_runs_and_shows_pictures(file, object_info, client, run_workflow, photo):
    prompt = to_api(json.loads(file.read_text(encoding="utf-8")), object_info)
    replace_loaders(prompt)
    for node in prompt.values():
        given = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node.update(class_type="RetraceDemoModel", inputs={})
        elif node["class_type"] == "CLIPVisionLoader":
            node.update(class_type="RetraceDemoVision", inputs={})
        elif node["class_type"] == "LoadImage":
            given["image"] = photo
        elif node["class_type"] == "ImageScale":
            given.update(width=128, height=128)
        elif node["class_type"].startswith(("RetraceInvert", "RetraceVirtual", "RetraceEdit")):
            given.update({name: few for name, few in FEWER.items() if name in given})
    run = run_workflow(prompt)
    pictures = [image for shown in run.outputs.values() for image in shown.get("images", [])]
    assert pictures
    for picture in pictures:
        assert client.download(picture).startswith(b"\x89PNG")
