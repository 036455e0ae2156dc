"""Import the pack by path under one fixed name, `retrace`, whatever its folder is called.

The repository root must never be on `sys.path`: its `nodes/` would shadow the host's `nodes.py`.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> ModuleType:
    """Return the package `retrace`, importing it from the repository root on the first call."""
    if "retrace" in sys.modules:
        return sys.modules["retrace"]
    spec = importlib.util.spec_from_file_location(
        "retrace", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["retrace"] = module
    spec.loader.exec_module(module)
    return module
