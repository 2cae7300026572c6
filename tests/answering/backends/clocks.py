"""A clock that tests move."""

from __future__ import annotations

import threading

from parallelmind.answering.backends.clock import Clock, StoppedError


class FakeClock(Clock):
    """Time passes by sleeping alone: a sleeper moves the clock to when it would wake."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._wall = wall
        self._now = 1000.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall + self._now - 1000.0

    def sleep(self, seconds: float, stop: threading.Event | None = None) -> None:
        if stop and stop.is_set():
            raise StoppedError
        with self._lock:
            self.slept.append(seconds)
            self._now += seconds
