#!/usr/bin/env python3
"""Keep the snapshot of the nodes' schemas that workflows of other people rely on.

    python3 tools/schemas.py            add new nodes and inputs to tests/nodes/schemas.json
    python3 tools/schemas.py --break    accept changes that break saved workflows, too

Nodes are released by their entry in the CHANGELOG; before that, --break does no harm.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphing.schemas import broken_promises, snapshot
from hosting.errors import HostError
from hosting.layout import REPOSITORY

from workflows import read_object_info

SNAPSHOT = REPOSITORY / "tests" / "nodes" / "schemas.json"


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--break", dest="breaking", action="store_true")
    options = parser.parse_args(arguments)
    old = json.loads(SNAPSHOT.read_text(encoding="utf-8")) if SNAPSHOT.exists() else {}
    new = snapshot(read_object_info())
    broken = broken_promises(old, new)
    for line in broken:
        print(line)
    if broken and not options.breaking:
        print("saved workflows would break: add instead of changing, or say --break")
        return 1
    SNAPSHOT.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(new)} nodes in {SNAPSHOT.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"schemas.py: {error}")
