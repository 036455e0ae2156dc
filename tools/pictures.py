#!/usr/bin/env python3
"""Make the README's pictures and the workflows' thumbnails by running the workflows.

    python3 tools/pictures.py [NAME ...]    all workflows of the demo model, or some of them

Writes docs/pictures/NAME.jpg and workflows/NAME.jpg. The versions for checkpoints get the thumbnail
of the same graph on the demo model, with the checkpoint's family written on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphing.recipes import RECIPES, Recipe
from hosting.client import Client
from hosting.errors import HostError
from hosting.layout import REPOSITORY, Host
from hosting.progress import Progress
from hosting.server import Server
from hosting.setup import find_host
from workflow_api import Prompt, to_api

FOLDER = REPOSITORY / "docs" / "pictures"
ORDER = ("source", "reconstruction", "where", "edited", "what a perfect")
SHORT = {"reconstruction of the source": "reconstruction", "where the edit acted": "mask",
         "what a perfect edit looks like": "perfect edit"}  # fmt: skip


def show_source(prompt: Prompt) -> None:
    """Show what is encoded, too."""
    encoder = next(node for node in prompt.values() if node["class_type"] == "VAEEncode")
    prompt["source"] = {
        "class_type": "PreviewImage",
        "inputs": {"images": encoder["inputs"]["pixels"]},
        "_meta": {"title": "source"},
    }


def place(title: str) -> int:
    """Return where a picture of that title stands on the sheet."""
    return next((i for i, start in enumerate(ORDER) if title.startswith(start)), len(ORDER))


def run_recipe(recipe: Recipe, client: Client, object_info: dict[str, Any], host: Host) -> None:
    """Run a recipe's workflow on the demo model; write its sheet and its thumbnails."""
    file = REPOSITORY / "workflows" / f"{recipe.name}.json"
    prompt = to_api(json.loads(file.read_text(encoding="utf-8")), object_info)
    show_source(prompt)
    run = client.run(prompt, timeout=3600)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = []
        for node, shown in run.outputs.items():
            title = prompt[node]["_meta"]["title"].lower()
            for number, image in enumerate(shown.get("images", [])):
                path = Path(scratch) / f"{node}-{number}.png"
                path.write_bytes(client.download(image))
                many = f" {number + 1}" if len(shown["images"]) > 1 else ""
                pictures.append((SHORT.get(title, title) + many, str(path), place(title)))
        pictures.sort(key=lambda picture: (picture[2], picture[0]))
        kits = [kit for kit, _ in recipe.words]
        request = {
            "pictures": [picture[:2] for picture in pictures],
            "sheet": str(FOLDER / f"{recipe.name}.jpg"),
            "thumbnails": {
                str(REPOSITORY / "workflows" / f"{recipe.name}{kit.suffix}.jpg"): (
                    kit.label if not kit.demo else ""
                )
                for kit in kits
            },
        }
        script = Path(__file__).with_name("graphing") / "sheets.py"
        subprocess.run(
            [str(host.python), str(script)], input=json.dumps(request), text=True, check=True
        )


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="workflows, without .json")
    chosen = parser.parse_args(arguments).names
    if unknown := set(chosen) - {recipe.name for recipe in RECIPES}:
        raise HostError(f"there is no workflow {', '.join(sorted(unknown))}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    host = find_host(progress)
    with Server(host, host.base, host.home / "pictures.log") as server:
        server.check_pack()
        object_info = server.client.object_info()
        for recipe in RECIPES:
            if not chosen or recipe.name in chosen:
                with progress.stage(recipe.name):
                    run_recipe(recipe, server.client, object_info, host)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"pictures.py: {error}")
