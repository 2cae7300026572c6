"""One job at a time on an output."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from parallelmind.errors import JobError


def lock_output(lock_path: Path, out_path: Path) -> BaseFileLock:
    """Take the lock; the system frees it when the process ends, however it ends.

    Raises:
        JobError: another process has it, or the file system cannot lock.
    """
    lock = FileLock(lock_path)
    try:
        return lock.acquire(timeout=0).lock
    except Timeout:
        raise JobError(
            f"another run is writing {out_path}; wait until it ends, or give another output (--out_path or "
            "--output_file)."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise JobError(f"cannot lock {lock_path} ({error}); choose an output on another disk.") from error
