"""The one retry layer: which failures are tried again, when and how long, and one pause for all requests."""

from __future__ import annotations

import email.utils
import math
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from parallelmind.answering.backends.clock import Clock, Sleep
from parallelmind.settings.http import MaxAttempts, MaxRetrySeconds
from parallelmind.settings.setting import Settings

R = TypeVar("R")
_SPREAD_SECONDS = 1.0
"""The requests do not all start again at the very moment the pause ends."""


@dataclass(kw_only=True, eq=False)
class AttemptError(Exception):
    """One request failed."""

    kind: str
    """A short name to count by."""
    message: str
    """Without keys."""
    retry: bool = False
    """The same request may succeed later."""
    pause: bool = False
    """The server has too many requests: all of them wait, and this one is not to blame."""
    retry_after: float | None = None
    """Seconds the server asks to wait."""
    fatal: bool = False
    """No request will succeed before the user changes something."""
    final: bool = False
    """This request will not succeed, whenever it is made."""

    def __str__(self) -> str:
        return self.message


class GaveUpError(Exception):
    """A row failed for good."""

    def __init__(self, failure: AttemptError, retries: int, seconds: float) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retries = retries
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Tried(Generic[R]):
    """The result of the last attempt that was made."""

    result: R
    retries: int
    seconds: float
    """From the first attempt to the end."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(Settings):
    """How often and how long one row is tried.

    Raises:
        SettingsError: a value is out of range.
    """

    max_attempts: MaxAttempts = 8
    """Refusals because of too many requests do not count, they say nothing about the request."""
    max_retry_seconds: MaxRetrySeconds = 600.0
    """No attempt starts later than this after the first one."""
    base_delay: float = 0.5
    """Before attempt n + 1, a random wait from 0 to `base_delay` × 2ⁿ seconds ("full jitter"; AWS Architecture Blog,
    Exponential Backoff And Jitter, 2015), but at least what the server asks for."""
    max_delay: float = 30.0


class Retrying:
    """Makes attempts until one succeeds; shared by all threads of a backend."""

    def __init__(self, policy: RetryPolicy, pause: Pause, clock: Clock, rng: random.Random) -> None:
        self._policy = policy
        self._pause = pause
        self._clock = clock
        self._rng = rng

    def __call__(self, attempt: Callable[[], R], *, ready: Callable[[], None], sleep: Sleep) -> Tried[R]:
        """Make attempts, each when no pause is on and `ready` has returned (it waits for the rate limits).

        Raises:
            GaveUpError: with the last failure.
        """
        started: float | None = None
        retries = counted = 0
        while True:
            self._pause.wait(sleep)
            ready()
            self._pause.wait(sleep)  # one may have begun meanwhile
            started = self._clock.now() if started is None else started
            try:
                result = attempt()
            except AttemptError as raised:
                failure = raised
            else:
                return Tried(result, retries, self._clock.now() - started)
            seconds = self._clock.now() - started
            counted += not failure.pause
            delay = self._delay(failure, retries)
            late = seconds + delay > self._policy.max_retry_seconds
            if not failure.retry or counted >= self._policy.max_attempts or late:
                raise GaveUpError(self._explained(failure, retries), retries, seconds)
            retries += 1
            if failure.pause:
                self._pause.hold(delay)
            else:
                sleep(delay)

    def _delay(self, failure: AttemptError, retries: int) -> float:
        ceiling = min(self._policy.max_delay, self._policy.base_delay * 2.0 ** min(retries, 60))
        return max(failure.retry_after or 0.0, self._rng.uniform(0.0, ceiling))

    def _explained(self, failure: AttemptError, retries: int) -> AttemptError:
        asked, limit = failure.retry_after or 0.0, self._policy.max_retry_seconds
        if not failure.retry:
            return failure
        if asked > limit:
            # Every other row would hear the same: nothing is gained by failing one after the other.
            advice = (
                f"The server asks to wait {asked:.0f} s, longer than --max_retry_seconds {limit:g}: start the same "
                "command again later (what is done is kept), or raise the limit."
            )
            return replace(failure, message=f"{failure.message} {advice}", fatal=True)
        return replace(failure, message=f"{failure.message} (given up after {retries + 1} attempts)")


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """The wait a response asks for: `retry-after-ms`, or `Retry-After` as seconds or as a date (RFC 9110, 10.2.3).

    `now` is in seconds since 1970. None if there is no such header or nothing sensible in it.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(date.timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return None


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
