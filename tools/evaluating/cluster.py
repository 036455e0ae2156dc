"""Workers on a Ray cluster: one actor a GPU, or a number of cores, each with its own server.

Every machine needs this repository and its host (or COMFYUI_PATH) at the same paths, and the folder
of networks. Pictures travel with the jobs, so that the data and the results need not be shared.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosting.errors import HostError
from retrace.evaluation.jobs import Job, Result

from .plan import Plan

TOOLS = str(Path(__file__).resolve().parents[1])


def import_ray() -> Any:
    """Return Ray. Raises: HostError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise HostError(
            f"--ray needs Ray: run `{sys.executable} -m pip install ray` on every machine."
        ) from None
    return ray


@dataclass
class RayPool:
    """Actors on a cluster; call it with jobs. Use it as a context manager.

    address: of the cluster, "local" to start one on this machine. workers: how many actors, 0 for
    one a GPU, or one for every `cores` cores where there is no GPU.
    """

    plan: Plan
    address: str
    workers: int = 0
    cores: int = 1
    actors: list[Any] = field(default_factory=list)
    ray: Any = None

    def __enter__(self) -> RayPool:
        self.ray = import_ray()
        environment = {"env_vars": {"PYTHONPATH": TOOLS}}
        self.ray.init(address=self.address, runtime_env=environment, log_to_driver=False)
        found = self.ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        needs = {"num_gpus": 1} if gpus else {"num_cpus": self.cores}
        count = self.workers or gpus or max(1, int(found.get("CPU", 1)) // self.cores)
        kind = self.ray.remote(**needs)(Actor)
        plan = pickle.dumps(self.plan)
        self.actors = [kind.remote(plan, number) for number in range(count)]
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            try:
                self.ray.get(actor.close.remote(), timeout=20)
            except self.ray.exceptions.RayError:
                pass  # it has died already
        self.ray.shutdown()

    def __call__(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Yield the results of jobs as they come. Raises: HostError if a worker cannot work."""
        running: dict[Any, tuple[Any, Job]] = {}

        def give(actor: Any) -> None:
            job = next(jobs, None)
            if job is not None:
                running[actor.do.remote(pickle.dumps(job))] = (actor, job)

        for actor in self.actors:
            give(actor)
        while running:
            (ready, *_), _ = self.ray.wait(list(running))
            actor, job = running.pop(ready)
            try:
                answer = pickle.loads(self.ray.get(ready))
            except self.ray.exceptions.RayError as error:
                raise HostError(f"a worker of the cluster died on {job.key}: {error}") from error
            if isinstance(answer, Exception):
                raise answer
            yield answer
            give(actor)


class Actor:
    """A worker on a machine of the cluster; what it is sent is pickled until the pack is loaded."""

    def __init__(self, plan: bytes, number: int) -> None:
        import evaluating

        assert evaluating  # loads the pack, without which the plan could not be read
        self.opened = pickle.loads(plan).open(number)

    def do(self, job: bytes) -> bytes:
        """Do one job; a failure that no other job would survive comes back as a value."""
        try:
            answer: Any = self.opened.worker.do(pickle.loads(job))
        except HostError as error:
            answer = error
        return pickle.dumps(answer)

    def close(self) -> None:
        """Stop the server."""
        self.opened.close()
