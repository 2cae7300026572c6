"""Part files: the results of one worker, appended record by record, in the order they finish.

An entry is a header line (JSON) and, below it, the record's output rows exactly as they will stand in the
output. A worker killed at any moment leaves whole entries and at most one torn one at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from parallelmind.errors import JobError

__all__ = ["Entry", "PartWriter", "cut_torn_end", "read_entries", "read_header", "storage_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The header of one record's result."""

    index: int
    """Number of the record."""
    line: int
    """Its line in the input."""
    key: str
    """16 hex digits: hash of line number, content and settings."""
    attempt: int
    """From 1; of two entries for a record the higher attempt counts."""
    rows: int
    failed_rows: int
    error: str | None
    """The first error among the rows."""
    size: int
    """Bytes of the rows below the header."""
    crc: int
    """CRC-32 of those bytes."""


class PartWriter:
    """Appends entries; each one is handed to the operating system before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        binary = getattr(os, "O_BINARY", 0)  # Windows
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o666)

    def append(self, entry: Entry, payload: bytes) -> int:
        """Write one entry and return its offset.

        Raises:
            JobError: the disk is full or failing; what was written before stays good.
        """
        header = json.dumps(dataclasses.asdict(entry), ensure_ascii=False, separators=(",", ":"))
        start = os.lseek(self._file, 0, os.SEEK_END)
        remaining = memoryview(header.encode("utf-8") + b"\n" + payload)
        try:
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)
            raise storage_error(self._path, error) from error
        return start

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_entries(path: Path) -> Iterator[tuple[int, int, Entry]]:
    """Yield (offset, end, entry) of the entries from the start, up to the first that is not whole."""
    with path.open("rb", buffering=2**20) as file:
        while True:
            offset = file.tell()
            entry = read_header(file)
            if entry is None:
                return
            payload = file.read(entry.size)
            if len(payload) < entry.size or zlib.crc32(payload) != entry.crc:
                return
            yield offset, file.tell(), entry


def read_header(file: BinaryIO) -> Entry | None:
    """The header at the file's position, which moves to the rows below it; None if there is no whole one."""
    line = file.readline()
    if not line.endswith(b"\n"):
        return None
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


def cut_torn_end(path: Path, end: int) -> int:
    """Drop what follows the last whole entry, which ends at `end`; return the number of bytes dropped."""
    torn = path.stat().st_size - end
    if torn:
        os.truncate(path, end)
    return torn


def storage_error(path: Path, error: OSError) -> JobError:
    """What to tell the user when writing fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some space and start the same command again: it continues where it was"
    else:
        remedy = "When it can be written, start the same command again: it continues where it was"
    return JobError(f"cannot write {path}: {error.strerror or error}. {remedy}.")
