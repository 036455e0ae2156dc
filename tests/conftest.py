"""Shared fixtures: the pack under one fixed name, a ComfyUI on the CPU, the papers' numbers."""

import asyncio
import json
import os
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from fixtures_server import client, object_info, run_workflow, server  # noqa: E402, F401
from pack import load_pack  # noqa: E402

load_pack()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Share the suite between processes by file, all files that need the server in one.

    Not `--dist loadgroup`: with pytest 9.2 its groups are not seen.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "server" if needs_server(ROOT / file) else file

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many cases of the abuse table were run: the suite promises a number."""
    ran = {report.nodeid for outcome in ("passed", "failed")
           for report in terminalreporter.stats.get(outcome, ())
           if "test_abuse.py::test_bad_input" in report.nodeid}  # fmt: skip
    if ran:
        terminalreporter.write_line(f"abuse table: {len(ran)} cases run on a live server")


@cache
def needs_server(file: Path) -> bool:
    """Tell whether a file's tests, or all tests of its folder, are marked `server`."""
    texts = (path.read_text(encoding="utf-8") for path in (file, file.with_name("conftest.py"))
             if path.exists() and path != Path(__file__))  # fmt: skip
    return any("mark.server" in text for text in texts)


def comfyui_path() -> Path | None:
    """Return the ComfyUI tree to test against, or None."""
    candidates = [os.environ.get("RETRACE_COMFYUI"), ROOT / ".host" / "ComfyUI"]
    return next((Path(p) for p in candidates if p and (Path(p) / "main.py").exists()), None)


@pytest.fixture(scope="session")
def comfy():
    """Make `import comfy` work, on the CPU, in this process; skip where there is no ComfyUI."""
    path = comfyui_path()
    if path is None:
        pytest.skip("no ComfyUI: run the tests through 'python3 tools/host.py test'")
    import warnings

    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import comfy.options

            comfy.options.enable_args_parsing(False)
            from comfy.cli_args import args

            args.cpu = True
            import comfy.model_base
            import comfy.model_management
            import comfy.model_patcher
            import comfy.samplers
            import comfy.sd
            import comfy.supported_models
            import latent_preview

            import nodes

            assert latent_preview and nodes
            asyncio.new_event_loop().close()
    finally:
        sys.argv = argv
    return comfy


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden tensors made by the papers' own code."""
    candidates = [os.environ.get("RETRACE_GOLDEN"), ROOT / "tests" / "golden",
                  ROOT.parent / "shared" / "golden"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "weights").is_dir():
            return Path(candidate)
    pytest.skip("no golden tensors: set RETRACE_GOLDEN")


@pytest.fixture(scope="session")
def golden(golden_dir):
    """Load one golden file: golden("p2p/tiny3_10/x") -> (tensors, parameters)."""
    from safetensors.torch import load_file

    def load(name: str):
        tensors = load_file(golden_dir / f"{name}.safetensors")
        path = golden_dir / f"{name}.json"
        return tensors, json.loads(path.read_text()) if path.exists() else {}

    return load


@pytest.fixture(scope="session")
def tiny3(comfy, golden_dir):
    """The golden tests' random SD UNet as a host MODEL (fp32, CPU)."""
    from helpers_host import load_tiny3

    return load_tiny3(golden_dir)
