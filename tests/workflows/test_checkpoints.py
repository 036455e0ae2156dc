"""The workflows for real checkpoints run with the demo model in the checkpoint's place."""

import json

import pytest
from hosting.layout import REPOSITORY
from workflow_api import to_api

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
FILES = [file for file in FILES if "CheckpointLoaderSimple" in file.read_text(encoding="utf-8")]
pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflow_runs_with_another_model_and_a_photo(
    file, object_info, client, run_workflow, tmp_path
):
    from PIL import Image
    from retrace.demo.scenes import SCENES

    scene = SCENES["colour"]
    photo = tmp_path / "a photo.png"
    Image.fromarray(scene.image).resize((200, 160)).save(photo)
    prompt = to_api(json.loads(file.read_text(encoding="utf-8")), object_info)
    for node in prompt.values():
        given = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node.update(class_type="RetraceDemoModel", inputs={})
        elif node["class_type"] == "LoadImage":
            given["image"] = client.upload_image(photo)
        elif node["class_type"] == "ImageScale":
            given.update(width=128, height=128)
        elif node["class_type"].startswith("RetraceInvert") and "steps" in given:
            given["steps"] = 4
    run = run_workflow(prompt)
    pictures = [image for shown in run.outputs.values() for image in shown.get("images", [])]
    assert pictures
    for picture in pictures:
        assert client.download(picture).startswith(b"\x89PNG")
