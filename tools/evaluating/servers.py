"""Methods that are workflows: each case is edited by a real ComfyUI server."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hosting.client import Client, Run
from hosting.demo import notes, row_forwards
from hosting.errors import HostError, RunError, ServerError
from hosting.layout import Host
from hosting.server import Server
from PIL import Image
from retrace.evaluation.jobs import Edit, EditError, Job
from retrace.evaluation.worker import decode
from workflow_api import to_api

from .marks import Method, read_method, set_widgets

ARGUMENTS = ("--disable-api-nodes",)
LOADING = ("Loader", "RetraceDemoModel")  # read once for all cases, so not a case's time
HOUR = 3600.0
PID = "server.pid"


class Served:
    """Workflows by name, and the server that runs them; it is started when first needed.

    client: a server that runs already, which is not started, restarted or stopped. settings: by
    method, values of widgets that are not the workflow's own.
    """

    def __init__(
        self, workflows: dict[str, Any], host: Host | None, home: Path, cpu: bool | None,
        client: Client | None = None, settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings or {}
        self.workflows, self.host, self.home, self.cpu = workflows, host, home, cpu
        self._client, self._server = client, None
        self._methods: dict[str, Method] = {}
        self._starting, self._ended = threading.Lock(), False

    def client(self) -> Client:
        """Return a client of the server, started if it is not running.

        Raises: ServerError if it does not start, or if this has ended.
        """
        with self._starting:
            if self._client is None:
                if self._ended:
                    raise ServerError("the run has ended.")
                end_left_behind(self.home)
                log = self.home / "server.log"
                server = Server(self.host, self.home / "base", log, cpu=self.cpu,
                                arguments=ARGUMENTS)  # fmt: skip
                self._server = server  # so that it can be ended while it starts
                try:
                    server.__enter__()
                except BaseException:
                    self._server = None
                    raise
                (self.home / PID).write_text(str(server.process.pid))
                server.check_pack()
                self._client = server.client
            return self._client

    def close(self) -> None:
        """Stop the server."""
        server, self._server = self._server, None
        if server is not None:
            self._client = None
            server.stop()
            (self.home / PID).unlink(missing_ok=True)

    def end(self) -> None:
        """Stop the server, from any thread, and start none again."""
        self._ended = True
        server = self._server
        if server is not None and server.process is not None:
            server.process.terminate()  # one that is being started is not waited for
        with self._starting:
            self.close()

    def method(self, name: str) -> Method:
        """Return a workflow with its inputs found. Raises: HostError if it cannot be used."""
        if name not in self._methods:
            info = self.client().object_info()
            prompt = to_api(self.workflows[name], info)
            prompt = set_widgets(name, prompt, self.settings.get(name, {}))
            self._methods[name] = read_method(name, prompt, info)
        return self._methods[name]

    def edit(self, job: Job) -> Edit:
        """Edit one case; a server that dies is started again, once.

        Raises: EditError if the workflow fails on this case; HostError if it can run none.
        """
        try:
            return self._edit(job)
        except ServerError as error:
            if self._server is None:
                raise
            first = error
        self.close()
        try:
            return self._edit(job)
        except ServerError as second:
            self.close()
            raise EditError(f"the server died twice: {first}; {second}") from second

    def _edit(self, job: Job) -> Edit:
        method, client = self.method(job.method), self.client()
        values = case_texts(job)
        for what in ("image", "mask"):
            if what in method.inputs:
                values[what] = self.upload(job, what)
        prompt = method.fill(values)
        try:
            run = client.run(prompt, timeout=HOUR)
        except RunError as error:
            if not error.traceback and error.node_id:  # refused before it ran: no case will do
                raise HostError(f"{job.method}: {error}") from error
            raise EditError(str(error)) from error
        shown = run.outputs[method.output]["images"]
        said = row_forwards(notes(prompt, run))
        return Edit(
            decode(client.download(shown[0])), seconds(prompt, run), sum(said.values()) or None
        )

    def upload(self, job: Job, what: str) -> str:
        """Give the server the source, or the mask as a picture; return its name there.

        Each method's files have one name, written over: two methods then never share a cached
        inversion, so that each is charged for its own.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        file = self.home / f"{what}.png"
        mask = np.zeros(job.source.shape[:2], bool) if job.mask is None else job.mask
        shade = np.uint8(255) * mask
        colours = job.source if what == "image" else np.repeat(shade[..., None], 3, 2)
        # Load Image takes what is transparent as the mask
        Image.fromarray(np.dstack([colours, 255 - shade])).save(file)
        return self.client().upload_image(file, f"{job.method}-{what}.png")


def case_texts(job: Job) -> dict[str, str]:
    """Return the texts of a case by the name of their input."""
    before, after = job.blended or ("", "")
    return {
        "source": job.source_prompt,
        "target": job.target_prompt,
        "instruction": job.instruction,
        "blend_source": before,
        "blend_target": after,
        "source_sentences": job.source_prompt,
        "target_sentences": job.target_prompt,
    }


def seconds(prompt: dict[str, Any], run: Run) -> float:
    """Sum the seconds in nodes, without loading models."""
    return sum(
        spent
        for node, spent in run.seconds.items()
        if not any(word in prompt.get(node, {}).get("class_type", "") for word in LOADING)
    )


def end_left_behind(home: Path) -> None:
    """End the server of a worker that was killed before it could; its folder is needed again."""
    import psutil  # a requirement of ComfyUI

    try:
        process = psutil.Process(int((home / PID).read_text()))
        if str(home / "base") in process.cmdline():
            process.kill()
            process.wait(10)
    except (OSError, ValueError, psutil.Error):
        pass  # there is none
