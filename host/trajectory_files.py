"""Trajectory files in the host's folders."""

from .. import __version__
from ..diffusion.errors import TrajectoryError
from ..diffusion.trajectory import Trajectory
from ..diffusion.trajectory_file import from_bytes, to_bytes
from .link_files import FileKind

SUFFIX = ".trajectory.safetensors"
FILES = FileKind("trajectory", SUFFIX, "retrace/photo", TrajectoryError, "Save-Trajectory")

list_trajectories = FILES.list
find_trajectory = FILES.find
fingerprint = FILES.fingerprint


def save_trajectory(trajectory: Trajectory, filename_prefix: str) -> str:
    """Write a trajectory to the host's output folder; return its name for `load_trajectory`.

    Raises: TrajectoryError if the prefix leaves the output folder.
    """
    height, width = trajectory.clean.shape[2:]
    return FILES.write(to_bytes(trajectory, __version__), filename_prefix, width, height)


def load_trajectory(name: str) -> Trajectory:
    """Read a trajectory file. Raises: TrajectoryError (see diffusion/trajectory_file.py)."""
    return from_bytes(FILES.find(name).read_bytes())
