"""Trajectory files in the host's folders."""

import hashlib
import os
from pathlib import Path

import folder_paths

from .. import __version__
from ..diffusion.errors import TrajectoryError
from ..diffusion.trajectory import Trajectory
from ..diffusion.trajectory_file import from_bytes, to_bytes

SUFFIX = ".trajectory.safetensors"
FOLDERS = ("input", "output")


def list_trajectories() -> list[str]:
    """Return the names of the trajectory files in the host's folders, with the folder's mark."""
    names = []
    for kind in FOLDERS:
        root = Path(folder_paths.get_directory_by_type(kind))
        mark = "" if kind == "input" else f" [{kind}]"
        found = root.rglob(f"*{SUFFIX}") if root.is_dir() else ()
        names += [path.relative_to(root).as_posix() + mark for path in found]
    return sorted(names)


def find_trajectory(name: str) -> Path:
    """Return the path of a file name as `list_trajectories` writes it.

    Raises: TrajectoryError if there is no such file inside the host's folders.
    """
    plain, base = folder_paths.annotated_filepath(name)
    root = Path(base or folder_paths.get_input_directory()).resolve()
    path = (root / plain).resolve()
    allowed = [Path(folder_paths.get_directory_by_type(kind)).resolve() for kind in FOLDERS]
    if not any(path.is_relative_to(folder) for folder in allowed) or not path.is_file():
        raise TrajectoryError(
            f"there is no trajectory file {name!r} in the host's input or output folder; run "
            "Save-Trajectory first, or refresh the node"
        )
    return path


def fingerprint(name: str) -> str:
    """Return a hash of the file's content, so that the host re-reads what changed."""
    return hashlib.sha256(find_trajectory(name).read_bytes()).hexdigest()


def save_trajectory(trajectory: Trajectory, filename_prefix: str) -> str:
    """Write a trajectory to the host's output folder; return its name for `load_trajectory`.

    Raises: TrajectoryError if the prefix leaves the output folder.
    """
    data = to_bytes(trajectory, __version__)
    height, width = trajectory.clean.shape[2:]
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # the host raises a bare Exception here
        raise TrajectoryError(
            f"{filename_prefix!r} is not a place inside the output folder; use a name such as "
            "'retrace/photo'"
        ) from error
    file = f"{stem}_{counter:05}_{SUFFIX}"
    path = Path(folder, file)
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)  # never half a file under the final name
    finally:
        part.unlink(missing_ok=True)
    return f"{Path(subfolder, file).as_posix()} [output]"


def load_trajectory(name: str) -> Trajectory:
    """Read a trajectory file. Raises: TrajectoryError (see diffusion/trajectory_file.py)."""
    return from_bytes(find_trajectory(name).read_bytes())
