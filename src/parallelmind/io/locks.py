"""Locks that a process holds until it ends, however it ends: the system frees them."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from parallelmind.errors import ParallelMindError

_LOGGER = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def hold_lock(path: Path, *, busy: ParallelMindError, seconds: float = 0.0) -> BaseFileLock:
    """Take a lock, whose folder must exist; leave it with `release`, or use it in a `with` statement.

    Where the disk has no locks, as some network disks, there is a warning instead of a lock.

    Args:
        busy: raised if another process has it.
        seconds: how long to wait for it.
    Raises:
        OSError: the file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise busy from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        _LOGGER.warning(
            "cannot lock %s (%s): start no second run on this output while this one is going on", path, error
        )
    return lock


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True
