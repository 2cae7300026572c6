"""Time as the backends see it: a test puts its own in place and waits for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Sleep = Callable[[float], None]
"""Waits for so many seconds; raises `StoppedError` once the run is over."""


class StoppedError(Exception):
    """The run was interrupted: whoever waits gives up without a result."""


class Clock:
    """The real clock."""

    def now(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970: what a server's dates are compared with."""
        return time.time()

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Wait.

        Raises:
            StoppedError: `stop` was set before or meanwhile.
        """
        if stop.wait(max(seconds, 0.0)):
            raise StoppedError
