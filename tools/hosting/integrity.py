"""Run by the host's own Python: which installed packages are torn, and do some modules import?

`python integrity.py MODULE...` prints {"torn": [folder, ...], "failed": {module: error}}. A package
is torn when a file that its RECORD lists is missing or has another size, as an interrupted
installation leaves it; it is named by its .dist-info folder, without which pip takes it for not
installed.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import sys
import sysconfig
from importlib import metadata
from pathlib import Path


def is_torn(package: metadata.Distribution) -> bool:
    """Compare a package's files with its RECORD; compiled files come and go and are not counted."""
    files = package.files
    if files is None:
        return True
    for file in files:
        if file.suffix == ".pyc":
            continue
        try:
            size = os.stat(file.locate()).st_size
        except OSError:
            return True
        if file.size is not None and size != file.size:
            return True
    return False


def main(modules: list[str]) -> None:
    """Print the report as one line of JSON, the last line of the output."""
    site = sysconfig.get_path("purelib")
    folders = glob.glob(os.path.join(glob.escape(site), "*.dist-info"))
    torn = [folder for folder in folders if is_torn(metadata.PathDistribution(Path(folder)))]
    failed = {}
    if not torn:
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                failed[module] = f"{type(error).__name__}: {error}"
    print(json.dumps({"torn": sorted(torn), "failed": failed}))


if __name__ == "__main__":
    main(sys.argv[1:])
