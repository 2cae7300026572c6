"""The input of a job: where each record is, what stands there, and in which order the records are worked on."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import DataError, JobError
from parallelmind.io.jsonl import MAX_LINE_BYTES, JsonLine, LineReader, scan
from parallelmind.io.line_table import UTF8_BOM, InputSummary, LineTable
from parallelmind.jobs.task import GroupOf


class JobInput:
    """The records of a file; 28 bytes of memory a record, 32 with groups.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path, *, max_records: int | None = None, group_of: GroupOf | None = None) -> None:
        self.path = path
        self._stamp = _stamp(path)
        table, groups = LineTable(), array("Q")

        def note(content: bytes) -> None:
            assert group_of
            digest = hashlib.blake2b(group_of(content), digest_size=8).digest()
            groups.append(int.from_bytes(digest, "little"))

        self.summary: InputSummary = scan(
            path, max_records=max_records, table=table, on_line=note if group_of else None
        )
        self.groups: NDArray[np.uint32] | None = None
        """For each record the first record of its group; None: no groups, and work goes in input order."""
        if len(groups):
            _, first, group = np.unique(np.frombuffer(groups, np.uint64), return_index=True, return_inverse=True)
            self.groups = first[group].astype(np.uint32)
        self._table, self._offsets, self.numbers = table, table.offsets, table.numbers
        self.keys: NDArray[Any] = table.keys
        """What each result is bound to: the hash of its record."""
        self._file = path.open("rb")
        self._long_lines: LineReader | None = None

    def __len__(self) -> int:
        return self.summary.records

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

    def read(self, records: NDArray[np.int64]) -> list[JsonLine]:
        """The lines of these records, in this order.

        Raises:
            JobError: the input was edited since it was opened.
        """
        contents, sizes = self.contents(records)
        places = zip(records.tolist(), self.numbers[records].tolist(), contents, sizes, strict=True)
        return [JsonLine(index, number, content, size) for index, number, content, size in places]

    def contents(self, records: NDArray[np.int64]) -> tuple[list[bytes], list[int]]:
        """The content of each of these records, and its size, which is larger for a line that is too long to be kept.

        Raises:
            JobError: the input was edited since it was opened.
        """
        contents: list[bytes] = []
        sizes: list[int] = []
        breaks = np.flatnonzero(np.diff(records) != 1) + 1
        try:
            for run in np.split(records, breaks):
                found = self._read_run(run)
                contents += found[0]
                sizes += found[1]
        except DataError:
            self.check_unchanged()
            raise
        self.check_unchanged()
        return contents, sizes

    def check_unchanged(self) -> None:
        """Raises:
        JobError: the input was edited since it was opened.
        """
        if _stamp(self.path) == self._stamp:
            return
        if scan(self.path, max_records=len(self)).digest == self.summary.digest:
            raise JobError(
                f"{self.path} grew while the job ran; start the same command again: it continues where it was."
            )
        raise JobError(f"{self.path} was edited while the job ran; restore it, or begin anew with --overwrite.")

    def close(self) -> None:
        self._file.close()
        if self._long_lines is not None:
            self._long_lines.close()

    def _ends(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        following = np.minimum(records + 1, len(self) - 1)
        ends = self._offsets[following].astype(np.int64)
        return np.where(records + 1 < len(self), ends, self.summary.size)

    def _read_run(self, run: NDArray[np.int64]) -> tuple[list[bytes], list[int]]:
        """Contents and sizes of records that follow one another."""
        if not len(run):
            return [], []
        offsets, ends = self._offsets[run].astype(np.int64), self._ends(run)
        numbers = self.numbers[run]
        if int((ends - offsets).max()) > MAX_LINE_BYTES:
            self._long_lines = self._long_lines or LineReader(self.path)
            places = zip(run.tolist(), numbers.tolist(), offsets.tolist(), strict=True)
            lines = [self._long_lines.read(index=index, number=number, offset=at) for index, number, at in places]
            return [line.content for line in lines], [line.size for line in lines]
        first = int(offsets[0])
        self._file.seek(first)
        span = self._file.read(int(ends[-1]) - first)
        if int(numbers[-1] - numbers[0]) == len(run) - 1:
            contents = span.split(b"\n", len(run))[: len(run)]
        else:  # blank lines stand between them
            starts, stops = (offsets - first).tolist(), (ends - first).tolist()
            contents = [span[start:stop].partition(b"\n")[0] for start, stop in zip(starts, stops, strict=True)]
        if b"\r" in span or UTF8_BOM in span:
            contents = [content.rstrip(b"\r").removeprefix(UTF8_BOM) for content in contents]
        if len(contents) < len(run) or not all(contents):
            number = numbers[contents.index(b"") if b"" in contents else len(contents)]
            raise DataError(f"{self.path} was edited: line {number} is not where it was; restore the file.")
        return contents, [len(content) for content in contents]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
