#!/usr/bin/env python3
"""Write the workflows of the pack, drawn against the nodes of a real server.

    python3 tools/workflows.py            write workflows/*.json and subgraphs/*.json
    python3 tools/workflows.py --check    fail if one of them is not what would be written

The descriptions are in tools/graphing/recipes.py; the files are never edited by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphing.blueprint import NAME, draw_blueprint
from graphing.graph import write
from graphing.recipes import RECIPES
from hosting.errors import HostError
from hosting.layout import REPOSITORY
from hosting.progress import Progress
from hosting.server import Server
from hosting.setup import find_host

FOLDER = REPOSITORY / "workflows"
BLUEPRINT = REPOSITORY / "subgraphs" / f"{NAME}.json"


def project() -> tuple[str, str]:
    """Return the pack's name and version, as pyproject.toml states them."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = dict(re.findall(r'^(name|version) = "([^"]+)"$', text, re.MULTILINE))
    return found["name"], found["version"]


def draw_all(object_info: dict[str, Any]) -> dict[str, str]:
    """Return file name -> text of every workflow."""
    pack, version = project()
    files = {}
    for recipe in RECIPES:
        for kit, words in recipe.words:
            drawn = recipe.draw(kit, words, object_info, pack, version)
            files[f"{recipe.name}{kit.suffix}.json"] = write(drawn)
    return files


def read_object_info() -> dict[str, Any]:
    """Start a server, ask it for its nodes, stop it."""
    host = find_host(Progress())
    with Server(host, host.base, host.home / "workflows.log", cpu=True) as server:
        server.check_pack()
        return server.client.object_info()


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args(arguments)
    stale = []
    object_info = read_object_info()
    drawn = {FOLDER / name: text for name, text in draw_all(object_info).items()}
    drawn[BLUEPRINT] = write(draw_blueprint(object_info, *project()))
    for file, text in drawn.items():
        name = file.name
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not options.check:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file.relative_to(REPOSITORY)}")
    if stale and options.check:
        print(f"stale: {', '.join(stale)}; run python3 tools/workflows.py")
    return bool(stale and options.check)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"workflows.py: {error}")
