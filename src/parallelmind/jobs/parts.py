"""Part files: the results of one worker, appended record by record, in the order they finish.

A part is two files. `part-00000.rows` holds the output rows exactly as they will stand in the output;
`part-00000.index` one entry of fixed size per record, written after its rows. A worker killed at any moment leaves
whole entries, and at most rows without an entry, which the next owner of the part cuts off.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError
from parallelmind.jobs.outcome import Outcome

ENTRY = np.dtype(
    [
        ("record", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("crc", "<u4"),
        ("attempt", "<u2"),
        ("flags", "<u2"),
        ("rows", "<u4"),
        ("failed_rows", "<u4"),
        ("tokens_in", "<u4"),
        ("tokens_out", "<u4"),
        ("seconds", "<f4"),
        ("retries", "<u2"),
        ("worker", "<u2"),
        ("error_class", "S28"),
    ]
)
"""`offset` and `size`: bytes of the record's rows in the .rows file; `attempt` counts from 1."""

Entries = NDArray[Any]
"""Entries of a part, dtype ENTRY."""

_PACKED = struct.Struct("<QQQIHHIIIIfHH28s")
assert _PACKED.size == ENTRY.itemsize
_FINAL = 1
_MAGIC = b"PMPART2\n"
_HEADER_BYTES = len(_MAGIC) + 16
_FLUSH_SECONDS = 0.02
_FLUSH_BYTES = 2**18
_MOST = {"u2": 2**16 - 1, "u4": 2**32 - 1}


class Part:
    """Names the two files, and reads their entries."""

    def __init__(self, folder: Path, number: int, digest: bytes) -> None:
        self.number = number
        self.rows_path = folder / f"part-{number:05d}.rows"
        self.index_path = folder / f"part-{number:05d}.index"
        self._header = _MAGIC + digest
        self._read = _HEADER_BYTES

    def read_new(self) -> Entries:
        """The whole entries appended since the last call; dtype ENTRY.

        Raises:
            JobError: the part belongs to another job.
        """
        try:
            with self.index_path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                if len(header) < _HEADER_BYTES:
                    return np.empty(0, ENTRY)
                if header != self._header:
                    raise JobError(f"{self.index_path} belongs to another job; begin anew with --overwrite.")
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return np.empty(0, ENTRY)
        entries = np.frombuffer(content, ENTRY, count=len(content) // ENTRY.itemsize)
        self._read += entries.nbytes
        return entries

    def check(self, records: int) -> int:
        """Cut the part after its last whole and unchanged entry; return the bytes cut. No worker may own it.

        Raises:
            JobError: the part belongs to another job.
        """
        if not self.index_path.exists():
            return _cut(self.rows_path, 0)
        header = self.index_path.read_bytes()[:_HEADER_BYTES]
        if len(header) == _HEADER_BYTES and header != self._header:
            raise JobError(f"{self.index_path} belongs to another job; begin anew with --overwrite.")
        entries = np.empty(0, ENTRY)
        if self.index_path.stat().st_size >= _HEADER_BYTES + ENTRY.itemsize:
            whole = (self.index_path.stat().st_size - _HEADER_BYTES) // ENTRY.itemsize
            entries = np.memmap(self.index_path, ENTRY, mode="r", offset=_HEADER_BYTES, shape=(whole,))
        good, end = self._good_entries(entries, records)
        del entries
        kept = _HEADER_BYTES + good * ENTRY.itemsize if good else 0
        return _cut(self.rows_path, end) + _cut(self.index_path, kept)

    def _good_entries(self, entries: Entries, records: int) -> tuple[int, int]:
        """How many entries from the start are whole, and where the rows of the last one end."""
        end = 0
        if not len(entries) or not self.rows_path.exists():
            return 0, 0
        with self.rows_path.open("rb", buffering=2**20) as file:
            for number, entry in enumerate(_tuples(entries)):
                record, offset, size, crc, attempt = entry
                if offset != end or not attempt or record >= records:
                    return number, end
                payload = file.read(size)
                if len(payload) < size or zlib.crc32(payload) != crc:
                    return number, end
                end += size
        return len(entries), end

    def remove(self) -> None:
        self.index_path.unlink(missing_ok=True)
        self.rows_path.unlink(missing_ok=True)


class PartWriter:
    """Appends to a part.

    What was appended is with the operating system at the latest 20 milliseconds later, if there is another call by
    then: `flush_if_due` may be called as often as wanted. Records in between are done again after a kill.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        try:
            self._rows = _open_to_append(part.rows_path)
            self._index = _open_to_append(part.index_path)
            self._end = os.fstat(self._rows).st_size
            self._index_end = os.fstat(self._index).st_size
            if not self._index_end:
                self._index_end = append_all(self._index, part._header, 0)
        except OSError as error:
            raise storage_error(part.index_path, error) from error
        self._waiting_rows: list[bytes] = []
        self._waiting_entries: list[bytes] = []
        self._waiting_bytes = 0
        self._flushed = 0.0

    def append(self, record: int, attempt: int, outcome: Outcome) -> None:
        """Store what became of one record.

        Raises:
            JobError: the disk is full or failing; what was written before stays good.
        """
        payload = outcome.payload
        entry = _PACKED.pack(
            record,
            self._end + self._waiting_bytes,
            len(payload),
            zlib.crc32(payload),
            min(attempt, _MOST["u2"]),
            _FINAL if outcome.final else 0,
            outcome.rows,
            outcome.failed_rows,
            min(outcome.tokens_in, _MOST["u4"]),
            min(outcome.tokens_out, _MOST["u4"]),
            outcome.seconds,
            min(outcome.retries, _MOST["u2"]),
            self._part.number,
            outcome.error_class.encode("ascii", "replace")[:28],
        )
        self._waiting_rows.append(payload)
        self._waiting_entries.append(entry)
        self._waiting_bytes += len(payload)
        if self._waiting_bytes >= _FLUSH_BYTES:
            self.flush()
        else:
            self.flush_if_due()

    def flush_if_due(self) -> None:
        """Flush if the last flush was 20 milliseconds ago or more.

        Raises:
            JobError: the disk is full or failing.
        """
        if self._waiting_entries and time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system, rows first.

        Raises:
            JobError: the disk is full or failing; what was written before stays good.
        """
        rows, entries = b"".join(self._waiting_rows), b"".join(self._waiting_entries)
        self._waiting_rows.clear()
        self._waiting_entries.clear()
        self._waiting_bytes = 0
        path = self._part.rows_path
        try:
            end = append_all(self._rows, rows, self._end)
            path = self._part.index_path
            try:
                self._index_end = append_all(self._index, entries, self._index_end)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._rows, self._end)
                raise
            self._end = end
        except OSError as error:
            raise storage_error(path, error) from error
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close.

        Raises:
            JobError: the disk is full or failing.
        """
        try:
            if self._waiting_entries:
                self.flush()
        finally:
            os.close(self._rows)
            os.close(self._index)


def is_final(entries: Entries) -> NDArray[np.bool_]:
    """For each entry, whether its failure is final."""
    return (entries["flags"] & _FINAL).astype(np.bool_)


def append_all(descriptor: int, content: bytes, end: int) -> int:
    """Append to a file that ends at `end` and return its new end; a write that fails leaves it as it was."""
    remaining = memoryview(content)
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
    return end + len(content)


def storage_error(path: Path, error: OSError) -> JobError:
    """What to tell the user when writing fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free some space and start the same command again: it continues where it was"
    else:
        remedy = "When it can be written, start the same command again: it continues where it was"
    return JobError(f"cannot write {path}: {error.strerror or error}. {remedy}.")


def _tuples(entries: Entries) -> Iterable[tuple[int, int, int, int, int]]:
    fields = ("record", "offset", "size", "crc", "attempt")
    for start in range(0, len(entries), 2**16):  # plain integers are much faster than NumPy scalars
        block = entries[start : start + 2**16]
        yield from zip(*(block[name].tolist() for name in fields), strict=True)


def _open_to_append(path: Path) -> int:
    binary = getattr(os, "O_BINARY", 0)  # Windows
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o666)


def _cut(path: Path, end: int) -> int:
    if not path.exists():
        return 0
    torn = path.stat().st_size - end
    if torn > 0:
        os.truncate(path, end)
    return max(torn, 0)
