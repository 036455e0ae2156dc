"""Benchmarks: `python3 tools/host.py bench NAME`; a bench is a module of `benches/` with `main`."""

import importlib
import pkgutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))

import benches  # noqa: E402


def names() -> list[str]:
    """List the benches: modules of `benches/` whose names begin with no underscore."""
    found = [module.name for module in pkgutil.iter_modules(benches.__path__)]
    return [name for name in found if not name.startswith("_")]


def main(arguments: list[str]) -> int:
    """Run one bench with its own arguments; return its exit status."""
    if not arguments or arguments[0] not in names():
        asked = f"there is no bench {arguments[0]!r}; " if arguments else ""
        print(f"bench: {asked}benches are {', '.join(names())}", file=sys.stderr)
        return 2
    return importlib.import_module(f"benches.{arguments[0]}").main(arguments[1:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
