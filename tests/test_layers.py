"""The arrows between rooms: who may import whom, and that the pure rooms need no ComfyUI."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("nodes", "host", "attention", "diffusion", "evaluation", "demo")
MAY_IMPORT = {
    "nodes": {"nodes", "host", "attention", "diffusion", "evaluation", "demo"},
    "host": {"host", "attention", "diffusion"},
    "attention": {"attention", "diffusion"},
    "diffusion": {"diffusion"},
    "evaluation": {"evaluation", "host", "attention", "diffusion"},
    "demo": {"demo", "evaluation"},
}
HOST_PACKAGES = ("comfy", "comfy_extras", "nodes", "folder_paths", "latent_preview", "execution",
                 "node_helpers", "server", "comfy_execution")


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Yield (absolute name inside the pack or package name, inside the pack?, at import time?)."""
    package = list(path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        now = id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, False, now) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False, now
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join([*base, node.module]), True, now
                # a name may be a module of its own
                places = (ROOT.joinpath(*base, *node.module.split("."), a.name) for a in node.names)
                yield from ((".".join(place.relative_to(ROOT).parts), True, now)
                            for place in places if place.with_suffix(".py").is_file())  # fmt: skip
            else:
                yield from ((".".join([*base, alias.name]), True, now) for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    room = path.relative_to(ROOT).parts[0]
    for name, inside, at_import in imports(path):
        top = name.partition(".")[0]
        if inside and top == "__version__":
            continue
        if inside:
            assert top in MAY_IMPORT[room], f"{room} must not import {name}"
        elif top in HOST_PACKAGES:
            lazy_demo = room == "demo" and not at_import
            assert room == "host" or lazy_demo, f"{room} must not import {name}"
        elif top == "comfy_api":
            assert room in ("host", "nodes"), f"{room} must not import {name}"


LOADED_BY_THE_HOST = {"comfy", "comfy_api", "folder_paths", "latent_preview", "node_helpers",
                      "numpy", "PIL", "safetensors", "torch"}  # fmt: skip
"""Packages that the host imports when it starts anyway: another one makes the start longer."""

NOT_AT_START = (
    "evaluation.networks", "evaluation.runner", "evaluation.scenes_bench", "evaluation.pie_bench",
    "demo.autoencoder", "demo.transformer",
)  # fmt: skip


def loaded_at_start() -> tuple[set[Path], set[str]]:
    """Return the files of the pack that its loading imports, and the packages from outside."""
    files, packages = set(), set()
    left = [ROOT / "nodes" / "__init__.py"]
    while left:
        path = left.pop()
        if path in files or not path.is_file():
            continue
        files.add(path)
        for name, inside, at_import in imports(path):
            if not at_import:
                continue
            if not inside:
                packages.add(name.partition(".")[0])
                continue
            place = ROOT.joinpath(*name.split("."))
            left += [place.with_suffix(".py"), place / "__init__.py"]
            left += [parent / "__init__.py" for parent in place.parents if ROOT in parent.parents]
    return files, packages - set(sys.stdlib_module_names)


def test_loading_the_pack_imports_nothing_that_the_host_has_not_imported():
    files, packages = loaded_at_start()
    assert len(files) > 80  # the walk went on
    assert packages <= LOADED_BY_THE_HOST
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert not names & set(NOT_AT_START)


PURE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {tools!r})
from pack import load_pack
load_pack()
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""


def test_the_pure_rooms_import_with_no_comfyui():
    names = [
        "retrace." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("diffusion", "attention")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = PURE.format(
        blocked=(*HOST_PACKAGES, "comfy_api"), tools=str(ROOT / "tools"), names=names
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests"
    )
    assert done.returncode == 0, done.stderr
