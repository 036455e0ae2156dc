"""Start a real ComfyUI server with the pack installed, wait until it answers, and stop it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .client import Client
from .errors import HostError, ServerError
from .layout import Host, environment, prepare_base

ADDRESS = "127.0.0.1"
HAS_GPU = (
    "import torch; mps = getattr(torch.backends, 'mps', None); xpu = getattr(torch, 'xpu', None); "
    "print(any(part and part.is_available() for part in (torch.cuda, mps, xpu)))"
)
PACK_FAILED = re.compile(
    r"^.*(?:Cannot import|Error while calling comfy_entrypoint in) \S*retrace\b.*$", re.MULTILINE
)


def has_gpu(host: Host) -> bool:
    """Ask the host's torch whether there is a device to compute on other than the CPU."""
    asked = subprocess.run(
        [str(host.python), "-c", HAS_GPU], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() == "True"


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise ServerError if somebody listens on `port`."""
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"port {port} cannot be used ({error}): stop what listens there or name another "
                "with --port."
            ) from error


class Server:
    """A ComfyUI server process; use it as a context manager.

    base: its --base-directory. Temporary files go to a folder of this run's own, because a ComfyUI
    that starts empties the temporary folder it shares with others.
    cpu: None asks torch. keep_output: leave saved pictures in base/output instead of the temporary
    folder.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        log: Path,
        *,
        port: int = 0,
        cpu: bool | None = None,
        keep_output: bool = False,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.host, self.base, self.log = host, base, log
        if port:
            check_port(port)
        self.port = port or free_port()
        self.cpu = not has_gpu(host) if cpu is None else cpu
        self.keep_output = keep_output
        self.arguments = arguments
        self.client = Client(ADDRESS, self.port, self.check)
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        prepare_base(self.base, self.host)
        self._scratch = tempfile.TemporaryDirectory(prefix="retrace-")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environment(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                    cwd=self.host.comfyui,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._scratch.cleanup()

    def check(self) -> None:
        """Raise ServerError if the process has ended."""
        if self.process and self.process.poll() is not None:
            last = self.log_text().strip().splitlines()[-1:] or ["it said nothing"]
            raise ServerError(
                f"the ComfyUI server stopped (exit status {self.process.returncode}): {last[0]} "
                f"(log: {self.log})."
            )

    def check_pack(self) -> None:
        """Raise ServerError if the server could not import this pack (it goes on without it)."""
        if failed := PACK_FAILED.search(self.log_text()):
            raise ServerError(
                f"the server could not load the pack: {failed[0].strip()} (log: {self.log})."
            )

    def log_text(self) -> str:
        """Return what the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _command(self) -> list[str]:
        command = [str(self.host.python), str(self.host.comfyui / "main.py")]
        command += [
            "--base-directory",
            str(self.base),
            "--listen",
            ADDRESS,
            "--port",
            str(self.port),
        ]
        command += ["--temp-directory", self._scratch.name, "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:"]
        if not self.keep_output:
            command += ["--output-directory", self._scratch.name]
        if not self.host.owned:
            command += ["--extra-model-paths-config", str(self.base / "extra_model_paths.yaml")]
        return command + ["--cpu"] * self.cpu + list(self.arguments)

    def _wait_until_ready(self, timeout: float = 180.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            try:
                self.client.get("/system_stats")
                return
            except HostError:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the ComfyUI server did not answer within {timeout:.0f} s (log: "
                        f"{self.log})."
                    ) from None
            time.sleep(0.2)


def serve(host: Host, port: int, cpu: bool | None, arguments: tuple[str, ...] = ()) -> int:
    """Run a server in the foreground until Ctrl-C; print its address."""
    print("starting ComfyUI ...", flush=True)
    with Server(
        host,
        host.base,
        host.home / "serve.log",
        port=port,
        cpu=cpu,
        keep_output=True,
        arguments=arguments,
    ) as server:
        try:
            server.check_pack()
        except ServerError as error:
            print(f"warning: {error}", file=sys.stderr)
        print(
            f"ComfyUI with Retrace is at {server.client.url} ({'CPU' if server.cpu else 'GPU'}); "
            "Ctrl-C stops it."
        )
        print(
            f"pictures are saved in {server.base / 'output'}, the log is {server.log}", flush=True
        )
        try:
            status = server.process.wait()
        except KeyboardInterrupt:
            return 0
        server.check()
        return status
