"""Run pip in the host's Python: few words of progress, a log, one sentence on failure."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from .errors import SetupError
from .progress import Progress

NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish a new connection|Max retries exceeded|ProxyError"
    r"|SSLError|ConnectTimeout|Read timed out|Connection (?:refused|reset|aborted)"
    r"|Network is unreachable|name resolution|Name or service not known|getaddrinfo failed"
    r"|No route to host",
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"No space left on device|Errno 28|Disk quota exceeded", re.IGNORECASE)
NO_BUILD = re.compile(r"No matching distribution found for (\S+)")
PROGRESS = re.compile(
    r"^\s*(Collecting|Downloading|Installing collected packages|Using cached)\b:?\s*(\S*)"
)


def environment(scratch: Path) -> dict[str, str]:
    """Return the caller's environment without what would send pip's work somewhere else.

    scratch: where pip unpacks; the system's own place for temporary files is often too small for
    torch.
    """
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    scratch.mkdir(parents=True, exist_ok=True)
    env.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    env.update(TMPDIR=str(scratch), TEMP=str(scratch), TMP=str(scratch))
    return env


def run_pip(python: Path, arguments: list[str], log: Path, progress: Progress) -> None:
    """Run `pip ARGUMENTS`, append its output to `log`, and raise SetupError if it fails."""
    command = [str(python), "-m", "pip", *arguments, "--progress-bar", "off"]
    lines: list[str] = []
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment(log.parent / "scratch"),
        ) as pip,
    ):
        out.write(f"$ pip {' '.join(arguments)}\n")
        for line in pip.stdout:
            out.write(line)
            lines.append(line)
            if shown := PROGRESS.match(line):
                verb = "Installing" if shown[1].startswith("Installing") else shown[1]
                name = "the packages" if verb == "Installing" else shown[2].rsplit("/", 1)[-1]
                progress.live(f"{verb} {name}")
    if pip.returncode:
        raise SetupError(explain("".join(lines), log))


def explain(output: str, log: Path) -> str:
    """Turn the output of a failed pip into one sentence that says what to do."""
    if NO_SPACE.search(output):
        return f"the disk is full: free some space where {log.parent} lies, then run this again."
    if NO_NETWORK.search(output):
        return (
            "pip could not reach its package index: check the network connection (or the proxy "
            "and index "
            "that pip is set to use), then run the same command again; it goes on where it stopped."
        )
    if missing := NO_BUILD.search(output):
        advice = "try another Python from 3.10 to 3.13, or set COMFYUI_PATH to a ComfyUI you have"
        if "from versions: none" in output:  # also what pip says when it reaches no index at all
            advice = f"check the network connection; if that is well, {advice}"
        return f"pip found no {missing[1]} for this Python and platform: {advice} (see {log})."
    errors = [line.strip() for line in output.splitlines() if "ERROR" in line]
    last = errors[-1] if errors else (output.strip().splitlines() or ["no output"])[-1]
    return f"pip failed: {last} (all of it is in {log}; running this again is safe)."
