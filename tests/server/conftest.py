"""One real ComfyUI server with the pack installed, shared by all tests that need one."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "tools") not in sys.path:
    sys.path.insert(0, str(ROOT / "tools"))

from hosting.client import Client, Prompt, Run  # noqa: E402
from hosting.layout import Host  # noqa: E402
from hosting.server import Server  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and give it the time that a server start may take."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.server)
            item.add_marker(pytest.mark.timeout(600))


def comfyui() -> Path | None:
    """Return the ComfyUI tree to test against, or None."""
    candidates = [os.environ.get("RETRACE_COMFYUI"), ROOT / ".host" / "ComfyUI"]
    return next((Path(p) for p in candidates if p and (Path(p) / "main.py").exists()), None)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server on the CPU with nothing but this pack and the host's own nodes."""
    tree = comfyui()
    if tree is None:
        pytest.skip("no ComfyUI: run the tests through 'python3 tools/host.py test'")
    home = tmp_path_factory.mktemp("server")
    host = Host(Path(sys.executable), tree, home)
    arguments = ("--disable-api-nodes",)
    with Server(host, home / "base", home / "server.log", cpu=True, arguments=arguments) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """The server's client."""
    return server.client


@pytest.fixture(scope="session")
def object_info(client: Client) -> dict[str, Any]:
    """The server's description of every node type."""
    return client.object_info()


@pytest.fixture(scope="session")
def run_workflow(client: Client) -> Callable[[Prompt], Run]:
    """Run an API-form workflow; raises hosting.errors.RunError with the node's error."""
    return client.run
