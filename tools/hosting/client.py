"""Talk to a running ComfyUI as its page does: HTTP for requests, a websocket for what happens."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import HostError, RunError, ServerError
from .websocket import TEXT, WebSocket

Prompt = dict[str, dict[str, Any]]  # the API form: node id -> {"class_type", "inputs"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    outputs: node id -> what the node shows in the page, such as {"images": [...]} or {"text":
    [...]}.
    seconds: node id -> time spent in it. cached: nodes whose result was still there from an earlier
    run.
    """

    prompt_id: str
    outputs: dict[str, dict[str, list]]
    seconds: dict[str, float]
    cached: tuple[str, ...] = ()


@dataclass
class _Watch:
    """What has been heard of a run so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    node: str = ""
    since: float = 0.0
    failure: RunError | None = None

    def hear(self, kind: str, data: dict[str, Any]) -> bool:
        """Take in one event; return True when the run is over."""
        if kind == "execution_cached":
            self.cached = list(data["nodes"])
        elif kind == "execution_error":
            self.failure = _failure(data)
        elif kind == "execution_interrupted":
            node = data.get("node_type", "a node")
            self.failure = RunError(
                f"the run was interrupted in {node}.", str(data.get("node_id", "")), node
            )
        elif kind == "executing":
            now = time.monotonic()
            if self.node:
                self.seconds[self.node] = self.seconds.get(self.node, 0.0) + now - self.since
            self.node, self.since = data.get("display_node") or data.get("node") or "", now
            return data.get("node") is None
        return False


class Client:
    """A ComfyUI server at host:port.

    check: called while waiting; raises if the server is known to have died.
    """

    def __init__(self, host: str, port: int, check: Callable[[], None] = lambda: None) -> None:
        self.host, self.port, self.check = host, port, check
        self.client_id = uuid.uuid4().hex

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def get(self, path: str, **query: str) -> Any:
        """GET a path and return its JSON."""
        return json.loads(self._request("GET", path, query=query))

    def post(self, path: str, payload: Any) -> Any:
        """POST JSON and return the answer's JSON, or None if it is empty."""
        headers = {"Content-Type": "application/json"}
        answer = self._request("POST", path, json.dumps(payload).encode(), headers)
        return json.loads(answer) if answer.strip() else None

    def object_info(self) -> dict[str, Any]:
        """Return the server's description of every node type."""
        return self.get("/object_info")

    def upload_image(self, file: Path, name: str = "") -> str:
        """Upload a picture into the server's input folder; return its name for LoadImage."""
        mark = uuid.uuid4().hex
        quoted = urllib.parse.quote(name or file.name)
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{quoted}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body += file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        stored = json.loads(self._request("POST", "/upload/image", body, headers))
        return f"{stored['subfolder']}/{stored['name']}" if stored["subfolder"] else stored["name"]

    def download(self, image: dict[str, str]) -> bytes:
        """Return the bytes of a picture that a node shows: {"filename", "subfolder", "type"}."""
        return self._request("GET", "/view", query=image)

    def interrupt(self) -> None:
        """Ask the server to stop the run that is going on."""
        self.post("/interrupt", {})

    def run(
        self,
        prompt: Prompt,
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, data: None,
        timeout: float = 600.0,
    ) -> Run:
        """Run a workflow in the API form and return what it showed.

        on_event: called with each websocket message of this run, such as ("progress", {"value",
        "max", "node"}).
        Raises: RunError if the server refuses or fails it, or it is interrupted; ServerError if the
        server is gone.
        """
        watch = _Watch()
        deadline = time.monotonic() + timeout
        with WebSocket(self.host, self.port, f"/ws?clientId={self.client_id}") as socket:
            prompt_id = self._queue(prompt)
            over = False
            while not over:
                if time.monotonic() > deadline:
                    self.interrupt()
                    raise RunError(f"the run took longer than {timeout:.0f} s and was stopped.")
                message = socket.receive(1.0)
                if message is None:
                    self.check()
                elif message[0] == TEXT:
                    event = json.loads(message[1])
                    kind, data = event["type"], event["data"]
                    if data.get("prompt_id") == prompt_id:
                        on_event(kind, data)
                        over = watch.hear(kind, data)
        if watch.failure:
            raise watch.failure
        history = self.get(f"/history/{prompt_id}")[prompt_id]
        return Run(prompt_id, history["outputs"], watch.seconds, tuple(watch.cached))

    def _queue(self, prompt: Prompt) -> str:
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})[
                "prompt_id"
            ]
        except _Refused as refused:
            raise _refusal(refused.answer) from None

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
    ) -> bytes:
        # not urllib: a proxy set for the outside world must not be asked for this machine
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(
                method,
                path + ("?" + urllib.parse.urlencode(query) if query else ""),
                body,
                headers or {},
            )
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise ServerError(f"{self.url} does not answer ({error}).") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _Refused(f"{method} {path}: the server answered {response.status}", answer)
        return answer


class _Refused(HostError):
    """The server answered a request with an error status."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


def _failure(data: dict[str, Any]) -> RunError:
    """Turn an `execution_error` event into an exception that says node and cause."""
    message = str(data.get("exception_message", "")).strip()
    kind = str(data.get("exception_type", "")).rsplit(".", 1)[-1]
    node_id, node_type = str(data.get("node_id", "")), str(data.get("node_type", ""))
    trace = "".join(data.get("traceback") or []).rstrip()
    if message and message not in trace.splitlines()[-1:]:
        trace = f"{trace}\n{kind}: {message}"
    return RunError(f"{node_type} (node {node_id}): {kind}: {message}", node_id, node_type, trace)


def _refusal(answer: bytes) -> RunError:
    """Turn the answer to a refused /prompt into an exception that names the inputs at fault."""
    try:
        refused = json.loads(answer)
        errors = refused.get("node_errors") or {}
    except (ValueError, AttributeError):
        return RunError(f"the server refused the workflow: {answer[:300].decode(errors='replace')}")
    lines, first = [], ("", "")
    for node_id, node in errors.items():
        first = first if first[0] else (node_id, node.get("class_type", ""))
        for error in node.get("errors", []):
            lines.append(
                f"{node.get('class_type')} (node {node_id}): {error['message']}: {error['details']}"
            )
    if not lines:
        general = refused.get("error", {})
        general = general if isinstance(general, dict) else {"message": str(general)}
        lines = [": ".join(filter(None, [general.get("message"), general.get("details")]))]
    return RunError("the server refused the workflow: " + "; ".join(lines), *first)
