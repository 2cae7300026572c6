"""A small JSON file that several processes read and change, one at a time, and that is whole at any moment.

The lock is the system's own and is freed when a process ends, however it ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parallelmind.errors import JobError, SettingsError

_PAGE = 4096


class LockedFile:
    """Holds one JSON object."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def read(self) -> dict[str, Any]:
        """What was written last; empty before the first write."""
        with self._locked():
            return self._load()

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """The content, to be changed in place and stored at the end."""
        with self._locked():
            content = self._load()
            yield content
            self._store(content)

    def write(self, content: dict[str, Any]) -> None:
        with self._locked():
            self._store(content)

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl = _fcntl()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise JobError(f"cannot lock {self._path} ({error}); choose an output on another disk.") from error
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _load(self) -> dict[str, Any]:
        size = os.fstat(self._file).st_size
        text = os.pread(self._file, size, 0).decode("utf-8").strip()
        content: dict[str, Any] = json.loads(text) if text else {}
        return content

    def _store(self, content: dict[str, Any]) -> None:
        # One write, padded and never shorter than before: a process killed in between leaves the old or the new text.
        text = json.dumps(content, ensure_ascii=True).encode("ascii")
        pages = max(-(-len(text) // _PAGE), os.fstat(self._file).st_size // _PAGE)
        os.pwrite(self._file, text.ljust(pages * _PAGE), 0)


class ProcessLock:
    """Says that a process lives; others can see it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock and keep it until the process ends; without `wait`, False if another process has it."""
        fcntl = _fcntl()
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_held(self) -> bool:
        """Whether any process has the lock."""
        if not self._path.exists():
            return False
        probe = ProcessLock(self._path)
        free = probe.acquire(wait=False)
        probe.release()
        return not free


def _fcntl() -> Any:
    try:
        import fcntl
    except ImportError:
        raise SettingsError(
            "several worker processes need the file locks of Linux or macOS; start with --workers 0 here."
        ) from None
    return fcntl
