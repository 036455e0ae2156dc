#!/usr/bin/env python3
"""A ComfyUI host from nothing, and four things to do with it.

    python3 tools/host.py demo     edit an image on a real ComfyUI server, write results to output/
    python3 tools/host.py test     run the test suite (arguments go to pytest)
    python3 tools/host.py serve    start the server and its web page with the pack installed
    python3 tools/host.py bench    measure methods or speed (a name and its arguments follow)

The first run sets up a host under .host/ (several GB, a few minutes); later runs use it again.
Environment: COMFYUI_PATH=/some/ComfyUI uses that one, run by the Python that runs this command or
by COMFYUI_PYTHON, and installs nothing; RETRACE_HOST_DIR puts our own host elsewhere.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  before the imports, which older ones cannot read
    sys.exit("host.py: this needs Python 3.10 to 3.13: run the command with one of them.")

import argparse
import os
import signal
import subprocess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hosting import demo
from hosting.browser import ensure_chromium
from hosting.errors import HostError, RunError, SetupError
from hosting.layout import REPOSITORY, Host, environment
from hosting.progress import Progress
from hosting.server import check_port, serve
from hosting.setup import find_host


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="host.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo.add_arguments(commands.add_parser("demo", help="edit an image on a real server"))
    commands.add_parser("test", help="run the test suite; arguments go to pytest", add_help=False)
    server = commands.add_parser(
        "serve", help="start the server and its web page; what follows -- goes to ComfyUI"
    )
    commands.add_parser(
        "bench", help="run a benchmark; arguments go to tools/bench.py", add_help=False
    )
    server.add_argument("--port", type=int, default=8188)
    server.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    return parser


def run_tests(host: Host, arguments: list[str], progress: Progress) -> int:
    """Run pytest over the repository in the host's Python; return its exit status.

    The whole suite is shared by two processes where there are two cores, with half of the threads
    each: one has the tests of the server, which is shared, the other the rest. What names its
    tests or options runs in one process.
    """
    if not host.owned and not imports(host, "pytest, pytest_timeout"):
        raise SetupError(
            f"{host.python} lacks pytest or pytest-timeout: "
            f"run `{host.python} -m pip install pytest pytest-timeout`."
        )
    env = host_environment(host)
    if not arguments:
        ensure_chromium(host, progress)
        if (os.cpu_count() or 1) > 1 and imports(host, "xdist"):
            arguments = ["-n", "2", "--dist", "loadscope"]
            env["OMP_NUM_THREADS"] = str(max(int(env["OMP_NUM_THREADS"]) // 2, 1))
    command = [str(host.python), "-m", "pytest", *arguments]
    return subprocess.call(command, cwd=REPOSITORY, env=env)


def imports(host: Host, modules: str) -> bool:
    """Tell whether the host's Python has these modules."""
    asked = subprocess.run([str(host.python), "-c", f"import {modules}"], capture_output=True)
    return asked.returncode == 0


def run_bench(host: Host, arguments: list[str]) -> int:
    """Run one benchmark in the host's Python; return its exit status."""
    command = [str(host.python), str(REPOSITORY / "tools" / "bench.py"), *arguments]
    return subprocess.call(command, env=host_environment(host))


def host_environment(host: Host) -> dict[str, str]:
    """Return the environment of a program that imports the host's ComfyUI."""
    env = environment()
    env["RETRACE_COMFYUI"] = str(host.comfyui)
    env.setdefault("OMP_NUM_THREADS", str(min(os.cpu_count() or 1, 4)))
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    return env


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    options, rest = build_parser().parse_known_args(arguments)
    rest = rest[1:] if rest[:1] == ["--"] else rest
    progress = Progress()
    if options.command == "test":
        return run_tests(find_host(progress), rest, progress)
    if options.command == "bench":
        return run_bench(find_host(progress), rest)
    if options.command == "serve":
        check_port(options.port)
        return serve(find_host(progress), options.port, options.cpu or None, tuple(rest))
    if rest:
        build_parser().error(f"demo does not know {' '.join(rest)}")
    return demo.run_demo(options, progress)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt  # so that a server that was started is stopped on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(sys.argv[1:]))
    except RunError as error:
        where = " (the server's traceback is in its log, server.log)" if error.traceback else ""
        sys.exit(f"host.py: {error}{where}")
    except HostError as error:
        sys.exit(f"host.py: {error}")
    except KeyboardInterrupt:
        sys.exit("host.py: stopped; the same command goes on where this one was.")
