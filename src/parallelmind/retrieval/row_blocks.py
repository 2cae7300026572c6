"""Rows in compressed blocks: a gzip file for any tool, of which one row is read without unpacking the others."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from parallelmind.errors import DataError
from parallelmind.io.jsonl import MAX_LINE_BYTES

SUFFIX = ".gz"
_BLOCK = 32 * 1024
_LEVEL = 7
_LARGEST = 64 * 2**20
_KEPT = 8
_PLAIN = -1
_GZIP = 31
"""What zlib calls a stream with the header of gzip."""


def write_blocks(file: BinaryIO, lines: Iterable[bytes]) -> None:
    """Write lines, each with its end, in blocks of whole lines; the same lines give the same bytes."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _BLOCK:
            file.write(gzip.compress(block, _LEVEL, mtime=0))
            block.clear()
    if block:
        file.write(gzip.compress(block, _LEVEL, mtime=0))


class RowReader:
    """Reads the lines of a file one after another, or one by its place; compressed or not."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._is_plain = path.suffix != SUFFIX
        self._block = functools.lru_cache(_KEPT)(functools.partial(_unpacked, file, path))

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(block, offset in it, line with its end) of each line.

        Raises:
            DataError: it is not compressed in blocks of whole lines.
        """
        if self._is_plain:
            yield from self._plain_lines()
            return
        start, content = 0, b"\n"
        while self._has(start):
            if not content.endswith(b"\n"):
                raise _problem(self._path, "a row goes on in another block")
            content, length = _unpacked(self._file, self._path, start)
            offset = 0
            for line in _lines(content):
                yield start, offset, line
                offset += len(line)
            start += length

    def read(self, block: int, offset: int, size: int) -> bytes:
        """A part of a block."""
        if block == _PLAIN:
            self._file.seek(offset)
            return self._file.read(size)
        return self._block(block)[0][offset : offset + size]

    def _has(self, start: int) -> bool:
        self._file.seek(start)
        return bool(self._file.read(1))

    def _plain_lines(self) -> Iterator[tuple[int, int, bytes]]:
        self._file.seek(0)
        offset = 0
        while content := self._file.readline(MAX_LINE_BYTES):
            yield _PLAIN, offset, content
            offset += len(content)


def _lines(content: bytes) -> Iterator[bytes]:
    """Ended by line feeds alone."""
    parts = content.split(b"\n")
    yield from (part + b"\n" for part in parts[:-1])
    if parts[-1]:
        yield parts[-1]


def _unpacked(file: BinaryIO, path: Path, start: int) -> tuple[bytes, int]:
    """(content, length in the file) of the block at a place."""
    file.seek(start)
    unpacking = zlib.decompressobj(_GZIP)
    content, taken = bytearray(), 0
    while not unpacking.eof:
        packed = file.read(_BLOCK)
        taken += len(packed)
        if not packed:
            raise _problem(path, "it ends too early")
        try:
            content += unpacking.decompress(packed, _LARGEST + 1 - len(content))
        except zlib.error as error:
            raise _problem(path, str(error)) from None
        if len(content) > _LARGEST:
            raise _problem(path, f"a block has more than {_LARGEST:,} bytes")
    return bytes(content), taken - len(unpacking.unused_data)


def _problem(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not compressed as corpora are ({reason}); unpack it with gunzip, or build it again.")
