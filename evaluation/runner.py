"""Runs methods over a data set: what is still to do, handed to a pool, stored as it comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .jobs import Data, Job, Result
from .pie_bench import DamagedEntry
from .store import Store

Pool = Callable[[Iterator[Job]], Iterator[Result]]
"""Takes jobs as it can use them and yields their results in any order."""


@dataclass
class Pace:
    """How far a run is, and how long the rest will take; methods differ, so each has its mean."""

    todo: Counter = field(default_factory=Counter)
    done: Counter = field(default_factory=Counter)
    spent: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    began: float = field(default_factory=lambda: time.monotonic())
    last: float = field(default_factory=lambda: time.monotonic())

    def add(self, result: Result) -> None:
        """Take in a result."""
        now = time.monotonic()
        self.spent[result.method] = self.spent.get(result.method, 0.0) + now - self.last
        self.last = now
        self.done[result.method] += 1
        self.failed += bool(result.error)

    @property
    def left(self) -> float:
        """Seconds that the rest will take at the pace so far; a method not begun is as the mean."""
        done = self.done.total()
        mean = sum(self.spent.values()) / done if done else 0.0
        return sum(
            (count - self.done[name])
            * (self.spent[name] / self.done[name] if self.done[name] else mean)
            for name, count in self.todo.items()
        )

    def line(self, method: str) -> str:
        """Say where the run is."""
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.done.total()} of {self.todo.total()} edits ({method}: {self.done[method]} of "
            f"{self.todo[method]}{failed}), {clock(time.monotonic() - self.began)}, about "
            f"{clock(self.left)} left"
        )


@dataclass(frozen=True)
class Run:
    """A data set, the names of methods, and the groups of metrics to compute.

    again: edit cases anew that failed before.
    """

    data: Data
    methods: Sequence[str]
    groups: tuple[str, ...]
    store: Store
    again: bool = False

    def missing(self, method: str, key: str) -> tuple[str, ...] | None:
        """Return the groups that a case lacks, None if it has to be edited; () if it is done."""
        if self.again and (known := self.store.read(method, key)) and known.error:
            return None
        return self.store.missing(method, key, self.groups)

    def todo(self) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
        """Yield method, case and what it lacks: all cases of a method, then the next method's."""
        for method in self.methods:
            for key in self.data.cases:
                missing = self.missing(method, key)
                if missing != ():
                    yield method, key, missing

    def jobs(self, wanted: Iterable[tuple[str, str, tuple[str, ...] | None]]) -> Iterator[Job]:
        """Read the pictures of what is to do; a case that cannot be read is stored as failed."""
        for method, key, missing in wanted:
            case, edited = self.data.cases[key], None
            if missing is not None:
                edited = self.store.picture(method, key).read_bytes()
            try:
                yield self.data.job(case, method, self.groups if missing is None else missing,
                                    edited)  # fmt: skip
            except DamagedEntry as error:
                self.store.save(Result(method, key, case.type_name, error=str(error)))

    def go(self, pool: Pool, tell: Callable[[str], None] = lambda line: None) -> Pace:
        """Do all that is to do; every result is on disk before the next is asked for."""
        wanted = list(self.todo())
        pace = Pace(Counter(method for method, _, _ in wanted))
        for result in pool(self.jobs(wanted)):
            self.keep(result)
            pace.add(result)
            tell(pace.line(result.method))
        return pace

    def keep(self, result: Result) -> None:
        """Store a result; one that only added metrics joins what was there."""
        if result.picture is None and not result.error:
            before = self.store.read(result.method, result.key)
            if before is not None:
                result = replace(
                    before,
                    metrics={**before.metrics, **result.metrics},
                    groups=(*before.groups, *result.groups),
                )
        self.store.save(result)

    def results(self, methods: Sequence[str] | None = None) -> Iterator[Result]:
        """Yield what is stored, by method and then in the data's order."""
        for method in self.methods if methods is None else methods:
            for key in self.data.cases:
                result = self.store.read(method, key)
                if result is not None:
                    yield result


def clock(seconds: float) -> str:
    """Write a time: 48 s, 12:05, 3:00:10."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    minutes = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes}" if hours else minutes


def in_this_process(do: Callable[[Job], Result]) -> Pool:
    """Return the pool that does one job after the other here."""
    return lambda jobs: map(do, jobs)
