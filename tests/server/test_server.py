"""The client against a real server: results, refusals, failures, interruption."""

import io
import threading
import time

import numpy as np
import pytest
from hosting.errors import HostError, RunError, ServerError
from hosting.layout import Host
from hosting.server import Server
from PIL import Image

IMAGE = {
    "class_type": "EmptyImage",
    "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255},
}


def show(node: str) -> dict:
    return {"class_type": "PreviewImage", "inputs": {"images": [node, 0]}}


def with_inputs(node: dict, **inputs) -> dict:
    return {**node, "inputs": {**node["inputs"], **inputs}}


def test_pack_is_loaded(server, object_info):
    server.check_pack()
    assert "RetraceEditSampler" in object_info


def test_pack_is_loaded_without_a_warning(server):
    start = server.log_text().partition("To see the GUI")[0].splitlines()
    ours = [line for line in start if "custom_nodes/retrace" in line]
    assert ours  # the host says how long it took
    assert not [line for line in ours if "warn" in line.lower() or "error" in line.lower()]


def test_run_returns_what_nodes_show(run_workflow, client):
    events = []
    run = client.run({"1": IMAGE, "2": show("1")}, lambda kind, data: events.append(kind))
    (image,) = run.outputs["2"]["images"]
    assert client.download(image).startswith(b"\x89PNG")
    assert set(run.seconds) <= {"1", "2"}
    assert events[0] == "execution_start"
    assert "executed" in events
    again = run_workflow({"1": IMAGE, "2": show("1")})
    assert set(again.cached) == {"1", "2"}
    assert again.outputs.keys() == {"2"}


def test_uploaded_image_comes_back(client, run_workflow, tmp_path):
    run = run_workflow({"1": with_inputs(IMAGE, color=0x00FF00), "2": show("1")})
    file = tmp_path / "a pïcture.png"
    file.write_bytes(client.download(run.outputs["2"]["images"][0]))
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload_image(file)}}
    back = run_workflow({"1": load, "2": show("1")})
    (image,) = back.outputs["2"]["images"]
    pixels = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for data in (file.read_bytes(), client.download(image))
    ]
    assert np.array_equal(*pixels)


def test_bad_input_is_refused_with_node_and_name(run_workflow):
    with pytest.raises(RunError, match=r"EmptyImage \(node 1\).*width") as refused:
        run_workflow({"1": with_inputs(IMAGE, width=-4), "2": show("1")})
    assert (refused.value.node_id, refused.value.node_type) == ("1", "EmptyImage")


@pytest.mark.parametrize("prompt", [{}, {"1": IMAGE}, {"1": {"class_type": "Nope", "inputs": {}}}])
def test_workflow_that_cannot_run_is_refused(run_workflow, prompt):
    with pytest.raises(RunError, match="refused the workflow"):
        run_workflow(prompt)


def test_failing_node_is_named_with_its_traceback(client, server, run_workflow, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload_image(file)}}
    with pytest.raises(RunError, match=r"LoadImage \(node 1\): UnidentifiedImageError") as failed:
        run_workflow({"1": load, "2": show("1")})
    assert (failed.value.node_id, failed.value.node_type) == ("1", "LoadImage")
    assert "UnidentifiedImageError" in failed.value.traceback.splitlines()[-1]
    assert "UnidentifiedImageError" in server.log_text()


def test_interrupted_run_is_told_and_the_server_goes_on(client, run_workflow):
    stopper = threading.Timer(1.0, client.interrupt)
    stopper.start()
    with pytest.raises(RunError, match="interrupted"):
        run_workflow(slow_workflow())
    stopper.join()
    assert run_workflow({"1": IMAGE, "2": show("1")}).outputs["2"]["images"]


def test_run_that_takes_too_long_is_stopped(client, run_workflow):
    with pytest.raises(RunError, match="longer than 1 s"):
        client.run(slow_workflow(), timeout=1.0)
    assert run_workflow({"1": IMAGE, "2": show("1")}).outputs["2"]["images"]


def slow_workflow() -> dict:
    """Blur a large image many times, from a colour that no run before had."""
    prompt = {"0": with_inputs(IMAGE, width=768, height=768, color=time.time_ns() % 0xFFFFFF)}
    blur = {"class_type": "ImageBlur", "inputs": {"blur_radius": 31, "sigma": 10.0}}
    for i in range(1, 200):
        prompt[str(i)] = with_inputs(blur, image=[str(i - 1), 0])
    prompt["show"] = show("199")
    return prompt


def test_unknown_path_is_an_error(client):
    with pytest.raises(HostError, match="404"):
        client.get("/no/such/path")


def test_check_is_silent_while_the_server_runs(server):
    server.check()


def test_dead_server_is_told(server, tmp_path):
    """A server that cannot start says its last words."""
    tree = tmp_path / "ComfyUI"
    tree.mkdir()
    (tree / "main.py").write_text("raise SystemExit('broken on purpose')")
    host = Host(server.host.python, tree, tmp_path)
    with pytest.raises(ServerError, match="broken on purpose"):
        Server(host, tmp_path / "base", tmp_path / "log", cpu=True).__enter__()
