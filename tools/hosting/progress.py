"""What a command says while it works: a line per stage with its seconds, and a live line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Prints stages; the live line is rewritten on a terminal, elsewhere printed now and then."""

    def __init__(self, every: float = 10.0) -> None:
        self.terminal = sys.stdout.isatty()
        self.every = every
        self.seconds: dict[str, float] = {}
        self._last = 0.0
        self._width = 0

    @contextmanager
    def stage(self, name: str, label: str = "") -> Iterator[None]:
        """Time a stage under `name`; announce it first, report its seconds when it is over."""
        label = label or name
        self.say(label + " ...")
        started = time.monotonic()
        self._last = started
        yield
        seconds = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.say(f"{label}: {seconds:.1f} s")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._wipe()
        print(text, flush=True)

    def live(self, text: str) -> None:
        """Show what is going on now; off a terminal only now and then."""
        now = time.monotonic()
        if self.terminal:
            self._wipe()
            text = text[:100]
            self._width = len(text)
            print(text, end="", flush=True)
        elif now - self._last >= self.every:
            self._last = now
            print("  " + text, flush=True)

    def _wipe(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="")
            self._width = 0
