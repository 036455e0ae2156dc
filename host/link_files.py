"""Files of link values in the host's input and output folders: list, find, write, fingerprint."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..diffusion.errors import RetraceError

FOLDERS = ("input", "output")


class FileKind(NamedTuple):
    """What the files of one link value are called, and how to complain about them.

    name: "trajectory"; suffix: how file names end; example: a prefix that works; error: the class
    raised; saver: the node that writes them.
    """

    name: str
    suffix: str
    example: str
    error: type[RetraceError]
    saver: str

    def list(self) -> list[str]:
        """Return the names of the files in the host's folders, with the folder's mark."""
        names = []
        for kind in FOLDERS:
            root = Path(folder_paths.get_directory_by_type(kind))
            mark = "" if kind == "input" else f" [{kind}]"
            found = root.rglob(f"*{self.suffix}") if root.is_dir() else ()
            names += [path.relative_to(root).as_posix() + mark for path in found]
        return sorted(names)

    def find(self, name: str) -> Path:
        """Return the path of a name as `list` writes it; raise if it is not in the folders."""
        plain, base = folder_paths.annotated_filepath(name)
        root = Path(base or folder_paths.get_input_directory()).resolve()
        path = (root / plain).resolve()
        allowed = [Path(folder_paths.get_directory_by_type(kind)).resolve() for kind in FOLDERS]
        if not any(path.is_relative_to(folder) for folder in allowed) or not path.is_file():
            raise self.error(
                f"there is no {self.name} file {name!r} in the host's input or output folder; run "
                f"{self.saver} first, or refresh the node"
            )
        return path

    def fingerprint(self, name: str) -> str:
        """Return a hash of the file's content, so that the host re-reads what changed."""
        return hashlib.sha256(self.find(name).read_bytes()).hexdigest()

    def write(self, data: bytes, filename_prefix: str, width: int = 0, height: int = 0) -> str:
        """Write a new file to the host's output folder; return its name as `list` writes it.

        Raises: the kind's error if the prefix leaves the output folder.
        """
        try:
            folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory(), width, height
            )
        except Exception as error:  # the host raises a bare Exception here
            raise self.error(
                f"{filename_prefix!r} is not a place inside the output folder; use a name such as "
                f"'{self.example}'"
            ) from error
        path = Path(folder, f"{stem}_{counter:05}_{self.suffix}")
        part = path.with_suffix(f".part{os.getpid()}")
        try:
            part.write_bytes(data)
            part.replace(path)  # never half a file under the final name
        except (OSError, ValueError) as error:  # a name too long or with NUL, a full disk
            reason = getattr(error, "strerror", None) or error
            raise self.error(
                f"the {self.name} file {filename_prefix[:60]!r} could not be written ({reason}); "
                f"use a name such as '{self.example}' and see that the disk is not full"
            ) from error
        finally:
            with suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
        return f"{Path(subfolder, path.name).as_posix()} [output]"
