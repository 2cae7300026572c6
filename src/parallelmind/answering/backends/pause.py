"""One pause for all requests to a server that said it has too many."""

from __future__ import annotations

import random
import threading

from parallelmind.answering.backends.clock import Clock, Sleep

_SPREAD_SECONDS = 1.0
"""The requests do not all start again at the very moment the pause ends."""


class Pause:
    """Shared by all requests of a backend."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._until = clock.now()

    def hold(self, seconds: float) -> None:
        """Let no request start for so long; a longer pause that was asked for already stays."""
        with self._lock:
            self._until = max(self._until, self._clock.now() + seconds)

    def wait(self, sleep: Sleep) -> None:
        """Return when no pause is on."""
        while (left := self._until - self._clock.now()) > 0:
            sleep(left + self._rng.uniform(0.0, min(_SPREAD_SECONDS, left)))
