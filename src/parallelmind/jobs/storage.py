"""Files of a job: putting them in place, and what to tell the user when writing fails."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from parallelmind.errors import JobError
from parallelmind.io.numbered_names import numbered_paths

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE")
"""SQLite says that a write failed, and not why, where a quota or the largest size of a file is in the way."""


def job_folder(out_path: Path) -> Path:
    """Where the state of the job lives whose output this is."""
    # One lock and one place of writing, whatever links the output is reached by.
    real = Path(os.path.realpath(out_path))
    return real.with_name(real.name + ".job")


def job_locks(out_path: Path) -> Iterator[Path]:
    """The locks of the jobs whose output has this name, or the next ones (`numbered_paths`)."""
    folders = itertools.takewhile(Path.exists, map(job_folder, numbered_paths(out_path)))
    return (lock_path(folder) for folder in folders)


def lock_path(folder: Path) -> Path:
    """What the run holds that writes the job in the folder."""
    return folder / "lock"


def ledger_path(folder: Path) -> Path:
    """The ledger in the folder of a job."""
    return folder / "ledger.sqlite"


def storage_error(path: Path, error: OSError | sqlite3.Error) -> JobError:
    """What to tell the user when writing fails."""
    if isinstance(error, OSError):
        full, said = error.errno in _FULL, error.strerror or str(error)
    else:
        full, said = getattr(error, "sqlite_errorname", "") in _SQLITE_FULL, str(error)
    if full:
        remedy = "Free some space and start the same command again: it continues where it was"
    else:
        remedy = "When it can be written, start the same command again: it continues where it was"
    return JobError(f"cannot write {path}: {said}. {remedy}.")


def put_in_place(temporary: Path, out_path: Path) -> None:
    """Replace a file by one on the same disk: a reader sees the old one or the whole new one.

    Raises:
        JobError: the disk is failing.
    """
    try:
        temporary.replace(out_path)
        _sync_folder(out_path.parent)
    except OSError as error:
        raise storage_error(out_path, error) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some systems cannot open folders, and then do not need this.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
