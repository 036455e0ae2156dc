"""What a worker needs to begin, small enough to be sent to it: methods, host, networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hosting.layout import Host
from retrace.evaluation.networks import Networks
from retrace.evaluation.worker import BUILT_IN, Worker

from .servers import Served


class Opened(NamedTuple):
    """A worker, and what stops its server."""

    worker: Worker
    close: Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """methods: name to workflow, or to None for a built-in one.

    host: the ComfyUI for the workflows, None if there are none. home: the servers' folder.
    threads: of a worker's own torch and of its server's where there is no GPU, so that results do
    not depend on how many workers share a machine; None leaves it to them. settings: by method,
    values of widgets that are not the workflow's own.
    """

    methods: Mapping[str, Any]
    host: Host | None
    home: Path
    cpu: bool | None = None
    networks: Path | None = None
    threads: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def open(self, number: int) -> Opened:
        """Make the worker of this process."""
        import torch

        if self.threads and (self.cpu or not torch.cuda.is_available()):
            torch.set_num_threads(self.threads)
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # for the server that it starts
        workflows = {name: flow for name, flow in self.methods.items() if flow is not None}
        served = Served(workflows, self.host, self.home / str(number), self.cpu,
                        settings=self.settings)  # fmt: skip
        methods = dict.fromkeys(workflows, served.edit)
        methods |= {name: BUILT_IN[name] for name, flow in self.methods.items() if flow is None}
        device = "cuda" if torch.cuda.is_available() and not self.cpu else "cpu"
        return Opened(Worker(methods, Networks(self.networks, device)), served.end)
