"""Stream the lines of a JSONL file: numbered, bounded in memory, whatever the file contains.

Lines end at `\\n` only (a `\\r` before it is dropped), a byte order mark is dropped, and blank lines are not
records: they are skipped, and `scan` counts them. What is compressed (gzip, zstd) is unpacked. Lines stay bytes here;
`records.parse_record` decodes them, so that a line that is not UTF-8 is one bad record and not the end of the job.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from parallelmind.errors import DataError
from parallelmind.io.compression import open_plain
from parallelmind.io.line_table import KEY_BYTES, UTF8_BOM, InputSummary, LineTable

MAX_LINE_BYTES = 16 * 2**20
"""Longer lines are not read into memory; each becomes one bad record."""

_CHUNK = 2**20
_KEPT_OF_LONG_LINE = 4096
_FOREIGN_STARTS = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8 (for example with iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8 (for example with iconv -f UTF-16 -t UTF-8)",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
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
    key: bytes = b""
    """What stands for the record in a job: the hash of its content, and of how many equal ones stand before it."""

    @property
    def too_long(self) -> bool:
        return self.size > len(self.content)


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


def read_line(file: BinaryIO, offset: int, max_line_bytes: int = MAX_LINE_BYTES) -> tuple[bytes, int, bytes]:
    """(content, size, hash) of the line at this byte, as `scan_file` hashes it; of a long line the content is cut."""
    file.seek(offset)
    head = file.readline(max_line_bytes + 2)
    if len(head) > max_line_bytes:
        content, length, digest, _ = _scan_long(head, file, max_line_bytes)
        return content, length, digest
    content = head.rstrip(b"\r\n").removeprefix(UTF8_BOM)
    return content, len(content), hashlib.sha256(content).digest()


def check_kind(start: bytes, name: object) -> None:
    """Raises DataError if a file that begins like this cannot be JSON lines."""
    for magic, description in _FOREIGN_STARTS.items():
        if start.startswith(magic):
            raise DataError(f"{name} is not a JSONL file: it is {description}.")


def scan(path: Path) -> InputSummary:
    """Count and hash the records that `read_lines` yields.

    Raises:
        DataError: as `read_lines`.
    """
    with _open(path) as file:
        return scan_file(file, LineTable())


def scan_file(
    file: BinaryIO,
    table: LineTable,
    *,
    max_records: int | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    on_line: Callable[[bytes], None] | None = None,
) -> InputSummary:
    """Count and hash the records of a file from its beginning, the first `max_records` of them.

    `table`, empty so far, is filled with their places and hashes; `on_line` is told the content of each.
    """
    add_offset, add_number, add_hash = table.adders()
    sha256, limit, readline = hashlib.sha256, max_line_bytes + 2, file.readline
    records = number = offset = 0
    file.seek(0)
    while records != max_records and (head := readline(limit)):
        number += 1
        size = len(head)
        if size > max_line_bytes:
            content, _, digest, size = _scan_long(head, file, max_line_bytes)
        else:
            content = head.rstrip(b"\r\n")
            if content[:3] == UTF8_BOM:
                content = content[3:]
            digest = b"" if not content or content.isspace() else sha256(content).digest()
        if digest:
            records += 1
            add_offset(offset)
            add_number(number)
            add_hash(digest[:KEY_BYTES])
            if on_line is not None:
                on_line(content)
        offset += size
    table.number_equals()
    return InputSummary(records=records, blank_lines=number - records, size=offset, digest=table.digest(records))


def _scan_long(head: bytes, file: BinaryIO, max_line_bytes: int) -> tuple[bytes, int, bytes, int]:
    """(content, its size, hash, bytes) of a line that begins with `head` and may be too long.

    The size is that of the whole content, of which a line that is too long has only the beginning; the hash of a blank
    line is b"".
    """
    hasher, size = hashlib.sha256(), 0

    def observe(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        hasher.update(chunk)

    content, length = _rest_of_line(head, file, max_line_bytes, observe)
    if length > len(content):
        return content, length, hasher.digest(), size
    return content, length, hashlib.sha256(content).digest() if content else b"", size


def _open(path: Path) -> BinaryIO:
    file = open_plain(path, Path(tempfile.gettempdir()))
    try:
        check_kind(file.read(6), path)
        file.seek(0)
    except BaseException:
        file.close()
        raise
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
