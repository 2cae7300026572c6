"""At most so many requests and tokens a minute, evenly spread."""

from __future__ import annotations

import threading

from parallelmind.answering.backends.clock import Clock, Sleep
from parallelmind.errors import SettingsError

_MINUTE = 60.0


class _Bucket:
    """A token bucket that holds one request: it never lets through more in a minute than its rate and one request.

    A bucket that holds a minute's worth, the usual kind, lets twice the limit through in the first minute.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._seconds_each = _MINUTE / per_minute
        self._clock = clock
        self._free_at = clock.now()

    def reserve(self, amount: float) -> float:
        """Take a place in the line, and return when it is due."""
        due = max(self._clock.now(), self._free_at)
        self._free_at = due + amount * self._seconds_each
        return due

    def give_back(self, amount: float) -> None:
        """Correct an estimate: less was used (or, below 0, more)."""
        self._free_at -= amount * self._seconds_each


class RateLimits:
    """Waits before each request as the limits demand; shared by all threads of one process.

    Args:
        rpm: requests a minute; None is no limit.
        tpm: tokens of prompts and answers a minute; None is no limit.

    Raises:
        SettingsError: a limit is not above 0.
    """

    def __init__(self, *, rpm: float | None, tpm: float | None, clock: Clock) -> None:
        for name, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and not value > 0:
                raise SettingsError(f"--{name} is {value}; it must be above 0 (leave it out for no limit).")
        self._clock = clock
        self._requests = None if rpm is None else _Bucket(rpm, clock)
        self._tokens = None if tpm is None else _Bucket(tpm, clock)
        self._lock = threading.Lock()

    def acquire(self, tokens: int, sleep: Sleep) -> None:
        """Wait until a request of about so many tokens may start."""
        with self._lock:
            due = max(
                self._requests.reserve(1) if self._requests else 0.0,
                self._tokens.reserve(tokens) if self._tokens else 0.0,
            )
        if (wait := due - self._clock.now()) > 0 and (self._requests or self._tokens):
            sleep(wait)

    def settle(self, estimated: int, used: int) -> None:
        """Tell what a request really used, 0 if it was refused."""
        if self._tokens:
            with self._lock:
                self._tokens.give_back(estimated - used)


def estimate_tokens(text_bytes: int, max_new_tokens: int) -> int:
    """A guess before the request: a token in 4 bytes of UTF-8 (letters, ideographs), and the longest answer."""
    return text_bytes // 4 + max_new_tokens
