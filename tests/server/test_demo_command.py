"""`host.py demo` as a user runs it: its own server, its files, its exit status."""

import json
import os
import subprocess
import sys

import pytest
from hosting.layout import REPOSITORY
from PIL import Image


@pytest.fixture
def demo(server, tmp_path):
    """Run the demo against the ComfyUI under test; returns the finished process and its folder."""

    def run(*options: str) -> tuple[subprocess.CompletedProcess, object]:
        env = {
            **os.environ,
            "COMFYUI_PATH": str(server.host.comfyui),
            "COMFYUI_PYTHON": str(server.host.python),
            "RETRACE_HOST_DIR": str(tmp_path / "host"),
        }
        command = [sys.executable, str(REPOSITORY / "tools" / "host.py"), "demo", "--cpu", *options]
        out = tmp_path / "out"
        ran = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, env=env)
        return ran, out

    return run


def test_demo_writes_pictures_and_report(demo):
    ran, out = demo("--steps", "10")
    assert ran.returncode == 0, ran.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["row-forwards"]["Invert-DDIM"] == 10
    assert report["reconstruction"] > 25
    assert report["outside"] > 10
    assert {"set-up", "server start", "inversion", "edit", "decode"} <= report["seconds"].keys()
    assert "PSNR of the reconstruction" in ran.stdout
    for name in ("source", "reconstruction", "edit", "exact"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (128, 128)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 4 * 256


def test_failing_demo_shows_the_servers_error_and_no_stale_pictures(demo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "edit.png").write_bytes(b"of an earlier run")
    ran, out = demo("--mode", "replace", "--target", "too few words")
    assert ran.returncode == 1
    assert "RetraceEditSampler" in ran.stderr
    assert "number of words" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Traceback" in (out / "server.log").read_text()
    assert not (out / "edit.png").exists()
