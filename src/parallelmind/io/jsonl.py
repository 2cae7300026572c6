"""Stream the lines of a JSONL file: numbered, bounded in memory, whatever the file contains.

Lines end at `\\n` only (a `\\r` before it is dropped), a byte order mark is dropped, and blank lines are not
records: they are skipped, and `scan` counts them. Lines stay bytes here; `records.parse_record` decodes them,
so that a line that is not UTF-8 is one bad record and not the end of the job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from parallelmind.errors import DataError
from parallelmind.io.line_table import KEY_BYTES, UTF8_BOM, InputSummary, LineTable

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are not read into memory; each becomes one bad record."""

_CHUNK = 2**20
_KEPT_OF_LONG_LINE = 4096
_FOREIGN_STARTS = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8 (for example with iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8 (for example with iconv -f UTF-16 -t UTF-8)",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
}


@dataclass(slots=True)  # not frozen: that makes it several times slower to make
class JsonLine:
    """One line that is not blank."""

    index: int
    """Number of the record, from 0; blank lines are not counted."""
    number: int
    """Number of the line in the file, from 1."""
    content: bytes
    """The bytes without the line end; of a line that is too long only the beginning."""
    size: int
    """Bytes of the whole line, without the line end."""

    @property
    def too_long(self) -> bool:
        return self.size > len(self.content)


class LineReader:
    """Reads single records of a file by their place, in any order."""

    def __init__(self, path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._path = path
        self._file = _open(path)
        self._max_line_bytes = max_line_bytes
        self._position = 0

    def read(self, *, index: int, number: int, offset: int) -> JsonLine:
        """The record `index`, which `scan` found in line `number` at byte `offset`.

        Raises:
            DataError: there is no such line: the file was edited.
        """
        if offset != self._position:
            self._file.seek(offset)
        head = self._file.readline(self._max_line_bytes + 2)
        self._position = offset + len(head)
        if len(head) > self._max_line_bytes:
            self._file.seek(offset)
            content, size = next(_raw_lines(self._file, self._max_line_bytes))
            self._position = self._file.tell()
        else:
            content = head.rstrip(b"\r\n").removeprefix(UTF8_BOM)
            size = len(content)
        if not content:
            raise DataError(f"{self._path} was edited: line {number} is not where it was; restore the file.")
        return JsonLine(index=index, number=number, content=content, size=size)

    def close(self) -> None:
        self._file.close()


def read_lines(
    path: Path, *, max_records: int | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[JsonLine]:
    """Yield the lines of `path` that are not blank, the first `max_records` of them.

    Raises:
        DataError: the file cannot be read, or is not text that JSON lines could be in.
    """
    index = 0
    with _open(path) as file:
        for number, (content, size) in enumerate(_raw_lines(file, max_line_bytes), start=1):
            if max_records is not None and index >= max_records:
                return
            if content or size:
                yield JsonLine(index=index, number=number, content=content, size=size)
                index += 1


def scan(
    path: Path,
    *,
    max_records: int | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    table: LineTable | None = None,
    on_line: Callable[[bytes], None] | None = None,
) -> InputSummary:
    """Count and hash the records that `read_lines` yields with the same arguments.

    `table`, empty so far, is filled with their places and hashes; `on_line` is told the content of each.

    Raises:
        DataError: as `read_lines`.
    """
    table = LineTable() if table is None else table
    add_offset, add_number, add_key = table.adders()
    sha256, limit = hashlib.sha256, max_line_bytes + 2
    records = number = offset = 0
    with _open(path) as file:
        readline = file.readline
        while records != max_records and (head := readline(limit)):
            number += 1
            size = len(head)
            if size > max_line_bytes:
                content, digest, size = _scan_long(head, file, max_line_bytes)
            else:
                content = head.rstrip(b"\r\n")
                if content[:3] == UTF8_BOM:
                    content = content[3:]
                digest = b"" if not content or content.isspace() else sha256(content).digest()
            if digest:
                records += 1
                add_offset(offset)
                add_number(number)
                add_key(digest[:KEY_BYTES])
                if on_line is not None:
                    on_line(content)
            offset += size
    return InputSummary(records=records, blank_lines=number - records, size=offset, digest=table.digest(records))


def _scan_long(head: bytes, file: BinaryIO, max_line_bytes: int) -> tuple[bytes, bytes, int]:
    """(content, hash, bytes) of a line that begins with `head` and may be too long; the hash of a blank line is b""."""
    hasher, size = hashlib.sha256(), 0

    def observe(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        hasher.update(chunk)

    content, length = _rest_of_line(head, file, max_line_bytes, observe)
    if length > len(content):
        return content, hasher.digest(), size
    return content, hashlib.sha256(content).digest() if content else b"", size


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb", buffering=_CHUNK)
        start = file.read(4)
        file.seek(0)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error
    for magic, description in _FOREIGN_STARTS.items():
        if start.startswith(magic):
            file.close()
            raise DataError(f"{path} is not a JSONL file: it is {description}.")
    return file


def _ignore(chunk: bytes) -> None:
    del chunk


def _raw_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield (content, size) of each line; a blank line is (b"", 0)."""
    while head := file.readline(max_line_bytes + 2):  # + 2: the line end of a line of just that length
        yield _rest_of_line(head, file, max_line_bytes, _ignore)


def _rest_of_line(
    head: bytes, file: BinaryIO, max_line_bytes: int, observe: Callable[[bytes], None]
) -> tuple[bytes, int]:
    """(content, size) of the line that begins with `head`; what is beyond the limit is read and not kept."""
    observe(head)
    size, end = len(head), head[-2:]
    content = head.rstrip(b"\r\n")
    if size > max_line_bytes and (len(content) > max_line_bytes or not head.endswith(b"\n")):
        del head
        content = content[: min(_KEPT_OF_LONG_LINE, max_line_bytes)]
        while not end.endswith(b"\n") and (chunk := file.readline(_CHUNK)):
            observe(chunk)
            size += len(chunk)
            end = (end + chunk)[-2:]
        size -= 2 if end == b"\r\n" else 1 if end.endswith(b"\n") else 0
        return content, size
    content = content.removeprefix(UTF8_BOM)
    if content.isspace():
        content = b""
    return content, len(content)
