"""Marks everything in this folder: it needs a real ComfyUI server (fixtures_server.py)."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for probe_pack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and give it the time that a server start may take."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.server)
            item.add_marker(pytest.mark.timeout(600))
