"""A limit on the time that this process takes to read a package's files."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from parallelmind.errors import DataError

_AGAIN_SECONDS = 2.0
_KILL_SECONDS = 30.0


class _OutOfTime(BaseException):
    """Not an Exception: a reader of files that goes on after one that cannot be read would go on after this, too."""


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Stop the block after some time; for the main thread, and where there are no such signals (Windows) no limit.

    Where no code of Python runs that could be stopped, the process is killed after some more time of the processor.

    Raises:
        DataError: the block took longer; says so of `what`.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)  # what a destructor raises leads nowhere
        raise _OutOfTime

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds + _KILL_SECONDS)
    try:
        yield
    except _OutOfTime:
        raise DataError(f"{what} took more than {seconds:g} seconds; raise --timeout.") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)
