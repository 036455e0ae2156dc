"""Where a host lives, and which one a command uses: ours, or the user's own."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import SetupError

REPOSITORY = Path(__file__).resolve().parents[2]
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
MODEL_FOLDERS = (
    "checkpoints", "clip", "clip_vision", "controlnet", "diffusion_models", "embeddings",
    "loras", "text_encoders", "unet", "upscale_models", "vae", "vae_approx",
)  # fmt: skip


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree, the Python that runs it, and the folder for what we keep beside it.

    owned: made by our set-up, as opposed to a ComfyUI of the user's.
    """

    python: Path
    comfyui: Path
    home: Path
    owned: bool = True

    @property
    def base(self) -> Path:
        """The --base-directory of `serve` and `demo`."""
        return self.home / "base"


def environment() -> dict[str, str]:
    """Return the environment to run the host's Python in.

    Threads that have no work sleep: where they spin, as is the default, a second busy process on a
    small machine makes each step wait for the other's time slice (measured: 38 s instead of 1.3 s).
    """
    unwanted = {"PYTHONPATH", "PYTHONHOME"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return env


def host_home() -> Path:
    """Return RETRACE_HOST_DIR, or .host under the repository."""
    return Path(os.environ.get("RETRACE_HOST_DIR") or REPOSITORY / ".host").absolute()


def venv_python(venv: Path) -> Path:
    """Return where a virtual environment keeps its Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def users_host() -> Host | None:
    """Return the host that COMFYUI_PATH (and COMFYUI_PYTHON) names; None if it is not set."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    comfyui = Path(named).expanduser().absolute()
    if not (comfyui / "main.py").is_file():
        raise SetupError(
            f"COMFYUI_PATH is {comfyui}, but there is no main.py: name the ComfyUI folder itself."
        )
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    found = shutil.which(python)
    if not found:
        raise SetupError(
            f"COMFYUI_PYTHON is {python}, which cannot be run: name that ComfyUI's Python."
        )
    return Host(Path(found).absolute(), comfyui, host_home(), owned=False)


def prepare_base(base: Path, host: Host, pack: Path = REPOSITORY) -> Path:
    """Make a base directory with the pack linked in; a user's models stay where they are."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "retrace"
    if link.is_symlink() and Path(os.readlink(link)) != pack:
        link.unlink()
    if not os.path.lexists(link):
        _link_folder(pack, link)
    example = host.comfyui / "input" / "example.png"  # what the stock LoadImage names
    if example.is_file() and not (base / "input" / example.name).exists():
        shutil.copy(example, base / "input")
    if not host.owned:
        lines = ["users_models:", f"  base_path: {host.comfyui / 'models'}"]
        lines += [f"  {name}: {name}" for name in MODEL_FOLDERS]
        (base / "extra_model_paths.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return base


def _link_folder(folder: Path, link: Path) -> None:
    if os.name == "nt":  # a symbolic link needs a privilege there, a junction does not
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)
