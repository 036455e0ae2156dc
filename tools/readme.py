#!/usr/bin/env python3
"""Fill the README's tables, which stand between <!-- table:NAME --> and <!-- /table -->.

    python3 tools/readme.py                      the tables of nodes and of workflows
    python3 tools/readme.py --table edits FILE   another table from a Markdown file ("-" is stdin)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphing.recipes import RECIPES
from hosting.errors import HostError
from hosting.layout import REPOSITORY

from workflows import read_object_info

README = REPOSITORY / "README.md"


def put_table(text: str, name: str, table: str) -> str:
    """Return the README's text with one table replaced. Raises: HostError if it has no such."""
    marked = re.compile(rf"<!-- table:{re.escape(name)} -->\n.*?<!-- /table -->", re.DOTALL)
    if not marked.search(text):
        raise HostError(f"the README has no table {name}.")
    return marked.sub(lambda _: f"<!-- table:{name} -->\n{table.strip()}\n<!-- /table -->", text)


def nodes_table(object_info: dict[str, Any]) -> str:
    """Return the table of nodes: name, what goes in by wire, what comes out, what it does."""
    lines = ["| node | takes | gives | what it does |", "|---|---|---|---|"]
    for name, info in object_info.items():
        if not name.startswith("Retrace"):
            continue
        given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        fields = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
        takes = [key for key, spec in given.items() if _kind(spec) not in fields]
        page = f"[{info['display_name']}](web/docs/{name}/en.md)"
        first = info["description"].partition(": ")[0].partition("; ")[0].rstrip(".")
        row = (page, ", ".join(takes), ", ".join(info["output_name"]), first)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _kind(spec: list) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def workflows_table() -> str:
    """Return the table of workflows with the files of each."""
    lines = ["| workflow | what it shows | files |", "|---|---|---|"]
    for recipe in RECIPES:
        files = [
            f"[{kit.label}](workflows/{recipe.name}{kit.suffix}.json)" for kit, _ in recipe.words
        ]
        lines.append(f"| {recipe.title} | {recipe.promise} | {', '.join(files)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs=2, metavar=("NAME", "FILE"))
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    if options.table:
        name, file = options.table
        table = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        text = put_table(text, name, table)
    else:
        text = put_table(text, "nodes", nodes_table(read_object_info()))
        text = put_table(text, "workflows", workflows_table())
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"readme.py: {error}")
