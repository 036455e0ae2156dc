"""Find a Chromium for the tests of the page, or install one where the system lets us."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .layout import Host
from .progress import Progress

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OWN = (
    "from playwright.sync_api import sync_playwright\n"
    "with sync_playwright() as api: print(api.chromium.executable_path)"
)
INSTALL = (
    ("apt-get", "update"),
    ("apt-get", "install", "-y", "--no-install-recommends", "chromium"),
)


def find_chromium() -> Path | None:
    """Return the first Chromium on the path that runs.

    A name that cannot say its version is passed over: where the package is a stub of another
    store's, the command is there and does nothing.
    """
    return next((path for name in BROWSERS if (path := _that_runs(name))), None)


def ensure_chromium(host: Host, progress: Progress) -> bool:
    """Return whether the tests of the page can run; install Chromium if that is all they lack.

    It is installed only by root and only with apt; else one line says what to do.
    """
    asked = subprocess.run([str(host.python), "-c", OWN], capture_output=True, text=True)
    if asked.returncode:
        progress.say(
            "the tests of the page are skipped: to run them too, give this Python playwright "
            f"(`{host.python} -m pip install playwright`)."
        )
        return False
    if find_chromium() or Path(asked.stdout.strip()).is_file():
        return True
    if may_install() and install(progress) and find_chromium():
        return True
    progress.say(
        "the tests of the page are skipped: to run them too, install Chromium (on Debian "
        f"`apt install chromium`, elsewhere `{host.python} -m playwright install chromium`)."
    )
    return False


def may_install() -> bool:
    """Tell whether this is root on a system with apt."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and bool(shutil.which("apt-get"))


def install(
    progress: Progress,
    run: Callable[..., subprocess.CompletedProcess] = subprocess.run,
    commands: Sequence[Sequence[str]] = INSTALL,
) -> bool:
    """Run the commands in turn; stop at the first that fails and tell its last line."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with progress.stage("chromium", "set-up: Chromium for the tests of the page"):
        for command in commands:
            try:
                done = run(command, capture_output=True, text=True, env=env, timeout=900)
            except (OSError, subprocess.TimeoutExpired) as error:
                progress.say(f"{' '.join(command)}: {error}")
                return False
            if done.returncode:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
                progress.say(f"{' '.join(command)}: {last[0]}")
                return False
    return True


def _that_runs(name: str) -> Path | None:
    found = shutil.which(name)
    if not found:
        return None
    try:
        ran = subprocess.run([found, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(found) if ran.returncode == 0 and ran.stdout.strip() else None
