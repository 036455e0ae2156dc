"""A host that is too old is told apart: by a sentence in its log, not by a lack of nodes."""

import subprocess
import sys

import pytest
from pack import ROOT

LOADER = """
import asyncio, importlib.util, logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(format="%(levelname)s %(message)s")
spec = importlib.util.spec_from_file_location(
    "custom", sys.argv[2] + "/__init__.py", submodule_search_locations=[sys.argv[2]])
module = importlib.util.module_from_spec(spec)
sys.modules["custom"] = module
spec.loader.exec_module(module)
if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
    print("has a list of nodes")
elif sys.argv[3] == "knows entry points":
    try:
        asyncio.run(module.comfy_entrypoint())
    except ImportError as error:
        print("failed:", error)
"""
"""What hosts of both ages do with a pack."""


def load(folder, version, knows):
    """Load the pack in a stand-in for a host of some version; return what is printed and logged."""
    if version:
        (folder / "comfyui_version.py").write_text(f"__version__ = {version!r}\n")
    if knows:
        (folder / "comfy_api" / "latest").mkdir(parents=True)
        for part in ("comfy_api", "comfy_api/latest"):
            (folder / part / "__init__.py").write_text("")
    command = [sys.executable, "-I", "-c", LOADER, str(folder), str(ROOT),
               "knows entry points" if knows else "lists"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("version", ["0.3.30", ""])
def test_a_host_that_knows_no_entry_point_logs_what_to_do(version, tmp_path):
    said = load(tmp_path, version, knows=False)
    wanted = f"this is {version}" if version else "this is older"
    assert f"ERROR Retrace needs ComfyUI 0.3.75 or newer and {wanted}" in said.stderr
    assert "update ComfyUI" in said.stderr and not said.stdout


def test_a_host_whose_api_lacks_something_logs_what_to_do_before_the_cause(tmp_path):
    said = load(tmp_path, "0.3.50", knows=True)
    assert "needs ComfyUI 0.3.75 or newer and this is 0.3.50" in said.stderr
    assert said.stderr.index("needs ComfyUI") < said.stderr.index("Traceback")
    assert "failed: cannot import name" in said.stdout


@pytest.mark.parametrize("version", ["0.3.75", "0.3.76rc1", "0.45.2", "1.0"])
def test_a_host_that_is_new_enough_is_told_nothing_of_its_age(version, tmp_path):
    assert "needs ComfyUI" not in load(tmp_path, version, knows=True).stderr
