"""Many mixed runs on one server: the model stays as it was, memory stays where it was.

Workflows of the pack in a random order, some cancelled at a random moment, some with an input that
is an error. "Flat" compares like with like: what the process holds right after the same small run,
with free memory handed back to the system.
"""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from abuse_table import ABSENT, CASES, WORLD, Case, check_message, graph
from fixtures_server import running_server
from hosting.errors import RunError
from hosting.layout import REPOSITORY
from hosting.server import Server
from workflow_api import Prompt, to_api

FILES = [file for file in sorted((REPOSITORY / "workflows").glob("*.json"))
         if not file.stem.endswith(("_sd15", "_sdxl"))]  # fmt: skip
FAILING = [case for case in CASES if case.fails and case.input != "file"]
KINDS = {"workflow": 6, "cancel": 2, "error": 2}  # how often each
WARM, EVERY = 20, 20  # runs
SLACK = 0.02


@dataclass
class Soak:
    """What came of the runs: how they ended, the model's hashes, bytes held every few runs."""

    ends: Counter = field(default_factory=Counter)
    digests: list[list[str]] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def loads_only(model: dict[str, Any], prompt: Prompt) -> bool:
    """Tell whether this model is all that a workflow loads."""
    loaders = [node for node in prompt.values() if "Loader" in node["class_type"]
               or node["class_type"] == model["class_type"]]  # fmt: skip
    return bool(loaders) and all(
        node["class_type"] == model["class_type"] and node["inputs"] == model["inputs"]
        for node in loaders
    )


class Soaker:
    """Draws runs from a seed and takes a server through them. steps: fewest and most of a run."""

    def __init__(
        self, server: Server, info: dict[str, Any], seed: int, steps: tuple[int, int] = (4, 8)
    ) -> None:
        self.server, self.random, self.steps = server, random.Random(seed), steps
        drawn = [to_api(json.loads(file.read_text("utf-8")), info) for file in FILES]
        # another model would push the one that is watched out of the host's cache
        self.workflows = [prompt for prompt in drawn if loads_only(WORLD["model"], prompt)]
        assert len(self.workflows) >= 15
        self.process = psutil.Process(server.process.pid)
        self.result = Soak()

    def go(self, runs: int, every: int = EVERY) -> Soak:
        """Take the server through so many runs; many begin with each workflow once."""
        self.measure()
        first = self.random.sample(self.workflows, len(self.workflows))
        for number in range(1, runs + 1):
            if number <= min(WARM, len(first)) and runs > WARM:
                self.run(first[number - 1])
            else:
                (kind,) = self.random.choices(list(KINDS), list(KINDS.values()))
                {"workflow": self.run, "cancel": self.cancel, "error": self.fail}[kind]()
            self.server.check()
            if number % every == 0 or number == runs:
                self.measure()
        return self.result

    def measure(self) -> None:
        """Hash the model and read what the process holds, with only the model in its cache."""
        shown = {"class_type": "ProbeDigest",
                 "inputs": {"model": ["model", 0], "time": time.time_ns()}}  # fmt: skip
        run = self.server.client.run({"model": WORLD["model"], "show": shown})
        self.result.digests.append(run.outputs["show"]["text"])
        tidy = {"class_type": "ProbeTidy", "inputs": {"time": time.time_ns()}}
        self.server.client.run({"model": WORLD["model"], "tidy": tidy})
        self.result.resident.append(self.process.memory_info().rss)

    def draw(self, workflow: Prompt | None = None, longer: int = 1) -> Prompt:
        """Return a workflow, or one of them, with few steps or so many times more."""
        prompt = json.loads(json.dumps(workflow or self.random.choice(self.workflows)))
        steps = self.random.randint(*self.steps) * longer
        few = {"steps": steps, "inner_steps": 2, "iterations": 2, "start_step": 0}
        for node in prompt.values():
            if node["class_type"].startswith(("RetraceInvert", "RetraceVirtual", "RetraceEdit")):
                node["inputs"].update({k: v for k, v in few.items() if k in node["inputs"]})
        return prompt

    def run(self, workflow: Prompt | None = None) -> None:
        """Run a workflow; it must show something."""
        assert self.server.client.run(self.draw(workflow)).outputs
        self.result.ends["run"] += 1

    def cancel(self) -> None:
        """Run a longer workflow and cancel it after so many of its messages."""
        left = self.random.randint(1, 60)

        def hear(kind: str, data: dict) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.server.client.interrupt()

        try:
            self.server.client.run(self.draw(longer=3), hear)
            self.result.ends["too late to cancel"] += 1
        except RunError as error:
            assert "interrupted" in str(error)
            self.result.ends["cancelled"] += 1

    def fail(self) -> None:
        """Run something that is an error, and be told so."""
        case: Case = self.random.choice(FAILING)
        given = ABSENT if case.absent else case.value
        prompt = {**WORLD, **case.more, **graph(case.node, {case.input: given}, {})}
        with pytest.raises(RunError) as told:
            self.server.client.run(prompt)
        check_message(told.value)
        self.result.ends["failed"] += 1


def check(soak: Soak, runs: int) -> None:
    """Assert that all runs ended as they should and the model is what it was, and the same one."""
    assert sum(soak.ends.values()) == runs
    assert min(soak.ends[end] for end in ("run", "cancelled", "failed")) > 0, soak.ends
    assert all(digest == soak.digests[0] for digest in soak.digests)


def test_model_outlives_mixed_runs(server, object_info):
    check(Soaker(server, object_info, seed=3, steps=(4, 4)).go(12, every=6), 12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_mixed_runs_leave_model_and_memory_as_they_were(tmp_path, capsys):
    with running_server(tmp_path) as server:
        soak = Soaker(server, server.client.object_info(), seed=8).go(200)
    megabytes = [round(size / 2**20, 1) for size in soak.resident]
    with capsys.disabled():
        print(f"\n{dict(soak.ends)}; MB at the start and every {EVERY} runs: {megabytes}")  # noqa: T201
    check(soak, 200)
    warm = soak.resident[WARM // EVERY]
    assert max(soak.resident[WARM // EVERY :]) <= warm * (1 + SLACK), megabytes
