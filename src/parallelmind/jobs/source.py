"""The input of a job: where each record is, what stands there, and in which order the records are worked on."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import DataError
from parallelmind.io.compression import STDIN, is_regular_or_pipe, open_plain
from parallelmind.io.jsonl import MAX_LINE_BYTES, JsonLine, check_kind, read_line, scan_file
from parallelmind.io.line_table import UTF8_BOM, InputSummary, LineTable, key_of
from parallelmind.jobs.stored import valid_text
from parallelmind.jobs.task import GroupOf

PIPE = "-"
"""What `JobInput.source` is for the standard input and for other pipes."""


@dataclass(frozen=True, slots=True)
class ReadLines:
    """Lines as they were read: a list has one entry for each."""

    contents: list[bytes]
    sizes: list[int]
    """Bytes of each, which are more than those of its content if it is too long to be kept."""
    intact: list[bool]
    """Whether it is the line that was there when the input was opened."""


class JobInput:
    """The records of a file; 28 bytes of memory a record, up to 52 where some are equal or have groups.

    What is read later is compared with what was there when the input was opened, so that no result can belong to a line
    that was edited meanwhile.

    Args:
        source: the file that this one was made from, if it was, or `STDIN` for any pipe.
        scratch: a folder for what has to be unpacked, or can be read only once.
    Raises:
        ParallelMindError: the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        scratch: Path,
        source: Path | None = None,
        max_records: int | None = None,
        group_of: GroupOf | None = None,
    ) -> None:
        self.path = path
        self._stamp = _stamp(path)
        self._group_of = group_of
        self.max_records = max_records
        """How many of them are read at most; None: all."""
        is_pipe = source == STDIN or not self._stamp
        self.source = PIPE if is_pipe else valid_text(os.path.realpath(source or path))
        """Which file it is, whatever its content."""
        self._file = open_plain(path, scratch)
        try:
            check_kind(self._file.read(6), path)
            self._read_table(max_records)
        except BaseException:
            self._file.close()
            raise

    def _read_table(self, max_records: int | None) -> None:
        table, groups, group_of = LineTable(), array("Q"), self._group_of

        def note(content: bytes) -> None:
            assert group_of
            digest = hashlib.blake2b(group_of(content), digest_size=8).digest()
            groups.append(int.from_bytes(digest, "little"))

        self.summary: InputSummary = scan_file(
            self._file, table, max_records=max_records, on_line=note if group_of else None
        )
        self.groups: NDArray[np.uint32] | None = None
        """For each record the first record of its group; None: no groups, and work goes in input order."""
        if len(groups):
            _, first, group = np.unique(np.frombuffer(groups, np.uint64), return_index=True, return_inverse=True)
            self.groups = first[group].astype(np.uint32)
        self._table, self._offsets, self.numbers = table, table.offsets, table.numbers
        self.keys: NDArray[Any] = table.keys
        """What each result is bound to, see `LineTable.keys`: no two records have the same."""

    def __len__(self) -> int:
        return self.summary.records

    def read_more(self, earlier: InputSummary) -> None:
        """Take as many records as an earlier input had, if it begins with just those."""
        records = len(self)
        self._read_table(earlier.records)
        if self.summary == earlier:
            self.max_records = earlier.records
        else:
            self._read_table(records)

    def in_order(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """These records, given in input order, in the order of work: group after group."""
        if self.groups is None:
            return records
        return records[np.argsort(self.groups[records], kind="stable")]

    def extends(self, earlier: InputSummary) -> bool:
        """Whether the input is what it was, or begins with all of the records it had, byte for byte."""
        return len(self) >= earlier.records and self._table.digest(earlier.records) == earlier.digest

    def sizes(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes from the beginning of each record to that of the next one."""
        return self._ends(records) - self._offsets[records].astype(np.int64)

    def line(self, record: int) -> JsonLine | None:
        """The line of a record; None if it was edited since the input was opened."""
        found = self.read(np.array([record]))
        if not found.intact[0]:
            return None
        key = self.keys[record].tobytes()
        return JsonLine(record, int(self.numbers[record]), found.contents[0], found.sizes[0], key)

    def read(self, records: NDArray[np.int64]) -> ReadLines:
        """What stands where these records were."""
        found = ReadLines([], [], [])
        breaks = np.flatnonzero(np.diff(records) != 1) + 1
        for run in np.split(records, breaks):
            if len(run):
                self._read_run(run, found)
        return found

    def is_current(self) -> bool:
        """Whether the input is as it was when it was opened, as far as the system tells; a pipe always is."""
        try:
            return _stamp(self.path) == self._stamp
        except OSError:
            return False

    def close(self) -> None:
        self._file.close()

    def _ends(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        following = np.minimum(records + 1, len(self) - 1)
        ends = self._offsets[following].astype(np.int64)
        return np.where(records + 1 < len(self), ends, self.summary.size)

    def _read_run(self, run: NDArray[np.int64], found: ReadLines) -> None:
        """Read records that follow one another."""
        offsets, ends = self._offsets[run].astype(np.int64), self._ends(run)
        if int((ends - offsets).max()) > MAX_LINE_BYTES:
            lines = [read_line(self._file, offset) for offset in offsets.tolist()]
            contents, sizes, hashes = (list(column) for column in zip(*lines, strict=True))
        else:
            contents = self._contents_of_run(run, offsets, ends)
            sizes = [len(content) for content in contents]
            hashes = [hashlib.sha256(content).digest() for content in contents]
        keys, occurrences = self.keys[run].tolist(), self._table.occurrences(run)
        found.intact.extend(
            key_of(digest, occurrence) == key for digest, occurrence, key in zip(hashes, occurrences, keys, strict=True)
        )
        found.contents.extend(contents)
        found.sizes.extend(sizes)

    def _contents_of_run(
        self, run: NDArray[np.int64], offsets: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> list[bytes]:
        first = int(offsets[0])
        self._file.seek(first)
        span = self._file.read(int(ends[-1]) - first)
        numbers = self.numbers[run]
        if int(numbers[-1] - numbers[0]) == len(run) - 1:
            contents = span.split(b"\n", len(run))[: len(run)]
        else:  # blank lines stand between them
            starts, stops = (offsets - first).tolist(), (ends - first).tolist()
            contents = [span[start:stop].partition(b"\n")[0] for start, stop in zip(starts, stops, strict=True)]
        if b"\r" in span or UTF8_BOM in span:
            contents = [content.rstrip(b"\r").removeprefix(UTF8_BOM) for content in contents]
        return contents + [b""] * (len(run) - len(contents))  # the file became shorter


def check_input(path: Path, hint: str = "") -> None:
    """Raises DataError if no records can be read from there."""
    if path != STDIN and not os.path.exists(path):
        raise DataError(f"the input {path} does not exist{hint}.")
    if not is_regular_or_pipe(path):
        raise DataError(f"the input {path} is not a file or a pipe; save the records to a file first.")


def _stamp(path: Path) -> tuple[int, ...]:
    """What the system says of a file, which differs once it was edited or replaced."""
    if path == STDIN:
        return ()
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
