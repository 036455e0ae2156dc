#!/usr/bin/env python3
"""Write the tables of the help pages anew from the nodes' schemas and translations.

    python3 tools/help_pages.py            fill the tables of web/docs/*/*.md
    python3 tools/help_pages.py --check    fail if one of them is stale

What stands outside the marked tables is written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphing.pages import HEADINGS, fill
from hosting.errors import HostError
from hosting.layout import REPOSITORY

from workflows import read_object_info

PAGES = REPOSITORY / "web" / "docs"


def translations(language: str) -> dict[str, Any]:
    """Return a language's names of the nodes; English is what the schemas say."""
    file = REPOSITORY / "locales" / language / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def fill_all(object_info: dict[str, Any]) -> dict[Path, str]:
    """Return page -> text as it should be, for the pages there are."""
    pages = {}
    for language in HEADINGS:
        words = translations(language)
        for page in sorted(PAGES.glob(f"*/{language}.md")):
            node = page.parent.name
            if node in object_info:
                text = page.read_text(encoding="utf-8")
                pages[page] = fill(text, object_info[node], language, words.get(node, {}))
    return pages


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args(arguments)
    stale = [
        (page, text)
        for page, text in fill_all(read_object_info()).items()
        if page.read_text(encoding="utf-8") != text
    ]
    for page, text in stale:
        print(f"{'stale' if options.check else 'wrote'}: {page.relative_to(REPOSITORY)}")
        if not options.check:
            page.write_text(text, encoding="utf-8")
    return bool(stale and options.check)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"help_pages.py: {error}")
