"""The set-up with real virtual environments and a real pip, over packages of a few bytes."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from hosting import setup
from hosting.errors import SetupError
from hosting.layout import venv_python
from hosting.progress import Progress
from hosting.setup import Recipe, ensure_host

pytestmark = pytest.mark.timeout(120)


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """Write a wheel of version 1.0 by hand."""
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(text)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose packages lie in a folder; pip is cut off from everything else."""
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, "tiny_lib", {"tiny_lib/__init__.py": "ANSWER = 42\n"})
    write_wheel(folder, "tiny_more", {"tiny_more.py": "\n"})
    tree = {"main.py": "", "requirements.txt": "tiny_more\n", "extra_model_paths.yaml": "x"}
    write_wheel(
        folder, "tiny_host", {f"tiny_host/comfy/{name}": text for name, text in tree.items()}
    )
    requirements = folder / "requirements.txt"
    requirements.write_text("tiny_lib==1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        yield Recipe("tiny_host==1.0", "tiny_host/comfy", (requirements,), ("tiny_lib",), 0.1)


@pytest.fixture(scope="module")
def made(recipe, tmp_path_factory):
    """A host set up from nothing, to be copied."""
    home = tmp_path_factory.mktemp("made") / "host"
    ensure_host(recipe, home, Progress())
    return home


@pytest.fixture
def home(made, tmp_path):
    """A finished host of the test's own."""
    return shutil.copytree(made, tmp_path / "host", symlinks=True)


def site_packages(home: Path) -> Path:
    return next((home / "venv").glob("[Ll]ib*/**/site-packages"))


def imports(home: Path, module: str) -> bool:
    command = [str(venv_python(home / "venv")), "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_setup_from_nothing_makes_a_whole_host(recipe, home):
    assert (home / "ComfyUI" / "main.py").is_file()
    assert not (home / "ComfyUI" / "extra_model_paths.yaml").exists()
    assert imports(home, "tiny_lib, tiny_more")
    assert not (home / "scratch").exists()


def test_second_run_starts_nothing(recipe, home, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    host = ensure_host(recipe, home, Progress())
    assert host.python.exists()
    assert host.owned


def test_interrupted_installation_is_repaired(recipe, home):
    (home / "stamp.json").unlink()
    (site_packages(home) / "tiny_lib" / "__init__.py").unlink()
    (site_packages(home) / "tiny_more-1.0.dist-info" / "RECORD").unlink()
    ensure_host(recipe, home, Progress())
    assert (site_packages(home) / "tiny_lib" / "__init__.py").is_file()
    assert (site_packages(home) / "tiny_more-1.0.dist-info" / "RECORD").is_file()


def test_interruption_between_environment_and_packages_is_repaired(recipe, home):
    for path in ("stamp.json", "ComfyUI/main.py"):
        (home / path).unlink()
    (home / "ComfyUI").rename(home / "ComfyUI.partial")
    shutil.rmtree(site_packages(home) / "tiny_lib-1.0.dist-info")
    ensure_host(recipe, home, Progress())
    assert (home / "ComfyUI" / "main.py").is_file()
    assert not (home / "ComfyUI.partial").exists()
    assert imports(home, "tiny_lib")


def test_half_made_environment_is_made_again(recipe, home):
    (home / "stamp.json").unlink()
    shutil.rmtree(site_packages(home) / "pip")
    ensure_host(recipe, home, Progress())
    assert imports(home, "tiny_lib, pip")


def test_changed_requirement_list_rebuilds_the_environment(recipe, home, tmp_path):
    changed = tmp_path / "changed.txt"
    changed.write_text("tiny_more==1.0\n")
    ensure_host(replace(recipe, requirements=(changed,), probes=()), home, Progress())
    assert not imports(home, "tiny_lib")
    assert imports(home, "tiny_more")


def test_package_that_does_not_import_is_named(recipe, home):
    (home / "stamp.json").unlink()
    with pytest.raises(SetupError, match="tiny_else is installed but does not import"):
        ensure_host(replace(recipe, probes=("tiny_else",)), home, Progress())
    assert not (home / "stamp.json").exists()


def test_no_network_says_so_and_leaves_no_stamp(recipe, home, monkeypatch):
    (home / "stamp.json").unlink()
    shutil.rmtree(home / "ComfyUI")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SetupError, match="check the network connection"):
        ensure_host(recipe, home, Progress())
    assert not (home / "stamp.json").exists()
    monkeypatch.undo()  # the network is back
    ensure_host(recipe, home, Progress())
    assert (home / "stamp.json").exists()


def test_full_disk_is_told_before_work_starts(recipe, tmp_path):
    with pytest.raises(SetupError, match="RETRACE_HOST_DIR"):
        ensure_host(replace(recipe, gigabytes=1e9), tmp_path / "host", Progress())
    assert not (tmp_path / "host" / "venv").exists()


def test_missing_venv_module_is_told(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SetupError, match="install its venv module"):
        ensure_host(recipe, tmp_path / "host", Progress())


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_wrong_python_is_told(version):
    with pytest.raises(SetupError, match=r"needs Python 3\.10 to 3\.13 and this is 3\.(9|14)"):
        setup.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_right_python_is_accepted(version):
    setup.check_python(version)


def test_stamp_changes_with_any_requirement(recipe, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("tiny_lib==1.1\n")
    assert replace(recipe, requirements=(other,)).stamp() != recipe.stamp()
    assert replace(recipe, wheel="tiny_host==1.1").stamp() != recipe.stamp()
    assert replace(recipe).stamp() == recipe.stamp()
