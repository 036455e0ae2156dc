"""Worker processes on this machine: each does one job at a time and hands its result back.

A worker that dies is replaced and its job given to another, once; when the parent dies, its workers
stop their servers and end.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from hosting.errors import HostError
from retrace.evaluation.jobs import Job, Result

from .plan import Plan


@dataclass
class Hand:
    """A worker process, its pipe and what it is doing."""

    process: Any
    pipe: Connection
    number: int
    job: Job | None = None
    tries: int = 0


@dataclass
class LocalPool:
    """Worker processes; call it with jobs. Use it as a context manager."""

    plan: Plan
    workers: int = 1
    hands: list[Hand] = field(default_factory=list)

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self.hands:
            hand.pipe.close()  # the worker reads the end of its jobs and stops its server
        for hand in self.hands:
            hand.process.join(20)
            if hand.process.is_alive():
                hand.process.kill()

    def __call__(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Yield the results of jobs as they come. Raises: HostError if a worker cannot work."""
        for number in range(self.workers):
            if not self.give(hand := self.start(number), next(jobs, None)):
                self.end(hand)
                break
        while busy := [hand for hand in self.hands if hand.job]:
            for pipe in wait([hand.pipe for hand in busy]):
                hand = next(hand for hand in busy if hand.pipe is pipe)
                try:
                    answer = hand.pipe.recv()
                except (EOFError, ConnectionError):
                    answer = self.bury(hand)
                    if answer is None:
                        continue
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                self.give(hand, next(jobs, None))

    def start(self, number: int) -> Hand:
        """Start a worker process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(self.plan, number, theirs), daemon=True)
        process.start()
        theirs.close()  # so that reading ends when the worker does
        hand = Hand(process, ours, number)
        self.hands.append(hand)
        return hand

    def give(self, hand: Hand, job: Job | None, tries: int = 0) -> bool:
        """Hand a job over; None means that there is no more."""
        hand.job, hand.tries = job, tries
        if job is not None:
            try:
                hand.pipe.send(job)
            except (BrokenPipeError, ConnectionError):
                pass  # it has died: reading will tell
        return job is not None

    def bury(self, hand: Hand) -> Result | None:
        """Replace a dead worker; its job is tried once more, then it counts as failed."""
        hand.process.join()
        job, tries, status = hand.job, hand.tries, hand.process.exitcode
        hand.pipe.close()
        self.hands.remove(hand)
        fresh = self.start(hand.number)
        hand.process, hand.pipe = fresh.process, fresh.pipe
        self.hands[-1] = hand
        if tries == 0:
            self.give(hand, job, 1)
            return None
        hand.job = None
        error = f"the worker died twice on this case (exit status {status})"
        return Result(job.method, job.key, job.type_name, error=error)

    def end(self, hand: Hand) -> None:
        """Send home a worker for whom there was nothing to do."""
        hand.pipe.close()
        hand.process.join()
        self.hands.remove(hand)


def work(plan: Plan, number: int, pipe: Connection) -> None:
    """Do jobs until there are no more: the whole life of a worker process."""
    opened = plan.open(number)
    threading.Thread(target=follow_parent, args=(opened.close,), daemon=True).start()
    try:
        while True:
            job = pipe.recv()
            try:
                answer = opened.worker.do(job)
            except HostError as error:
                answer = error
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        opened.close()


def follow_parent(close: Any) -> None:
    """End with the parent, whatever it died of; a server must not be left behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        close()
        os._exit(1)
