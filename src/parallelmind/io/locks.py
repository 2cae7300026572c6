"""Locks that a process holds until it ends, however it ends: the system frees them."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from parallelmind.errors import ParallelMindError

_LOGGER = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class HeldLock:
    """A lock that this process has until it lets go of it.

    Where the disk has no locks, as some network disks, there is a warning instead of a lock.

    Args:
        path: its folder must exist.
        busy: raised if another process has it.
        seconds: how long to wait for it.
    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, busy: ParallelMindError, seconds: float = 0.0) -> None:
        self._lock = FileLock(path)
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            raise busy from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            _LOGGER.warning("cannot lock %s (%s): start no second run there while this one is going on", path, error)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> HeldLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True
