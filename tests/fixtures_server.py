"""One real ComfyUI server with the pack installed, shared by all tests that need one."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hosting.client import Client, Prompt, Run
from hosting.layout import REPOSITORY, Host, prepare_base
from hosting.server import Server


def comfyui() -> Path | None:
    """Return the ComfyUI tree to test against, or None."""
    candidates = [os.environ.get("RETRACE_COMFYUI"), REPOSITORY / ".host" / "ComfyUI"]
    return next((Path(p) for p in candidates if p and (Path(p) / "main.py").exists()), None)


@contextmanager
def running_server(home: Path, *arguments: str) -> Iterator[Server]:
    """Run a server on the CPU with this pack, the host's own nodes and some for tests only."""
    tree = comfyui()
    if tree is None:
        pytest.skip("no ComfyUI: run the tests through 'python3 tools/host.py test'")
    host = Host(Path(sys.executable), tree, home)
    arguments = ("--disable-api-nodes", *arguments)
    prepare_base(home / "base", host)
    probes = REPOSITORY / "tests" / "server" / "probe_pack"
    (home / "base" / "custom_nodes" / "probe_pack").symlink_to(probes, target_is_directory=True)
    with Server(host, home / "base", home / "server.log", cpu=True, arguments=arguments) as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that all tests share."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
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
