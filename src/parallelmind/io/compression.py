"""Files that are compressed, and pipes: read as a plain file that can be read again from any place.

What has to be unpacked or can be read only once goes to a scratch file without a name, which is gone with the process.
"""

from __future__ import annotations

import gzip
import io
import itertools
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from parallelmind.errors import DataError, SettingsError

STDIN = Path("-")
"""Stands for the standard input where a path is asked for."""

_CHUNK = 2**20
_PACKED_CHUNK = 2**12
"""So much at once: a few bytes may unpack to a thousand times as many, which are in memory together."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def open_plain(path: Path, scratch: Path) -> BinaryIO:
    """Open a file, a pipe or the standard input for reading; what is compressed (gzip, zstd) is unpacked.

    The content tells what is compressed, not the name.

    Args:
        scratch: a folder for what has to be unpacked or can be read only once; nothing is left there.
    Raises:
        DataError: it does not exist or cannot be read, or what is compressed is damaged.
        SettingsError: there is no room in the scratch folder.
    """
    source = _open(path)
    start = source.read(4)  # not peek: a pipe may begin with a single byte
    packing = _packing(start)
    if packing is None and source.seekable() and path != STDIN:  # a file there cannot be looked at again by its name
        source.seek(0)
        return source
    with source:
        packed = itertools.chain([start], _chunks(source, _CHUNK if packing is None else _PACKED_CHUNK))
        chunks = packed if packing is None else _unpacked(path, packed, packing)
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            plain: BinaryIO = tempfile.TemporaryFile(dir=scratch, buffering=_CHUNK)  # type: ignore[assignment]  # noqa: SIM115
        except OSError as error:
            raise _no_room(path, scratch, error) from error
        for chunk in chunks:
            try:
                plain.write(chunk)
            except OSError as error:
                raise _no_room(path, scratch, error) from error
        plain.seek(0)
        return plain


def packing_of(name: Path) -> str | None:
    """How an output of this name is compressed: ".gz", ".zst", or not at all."""
    return name.suffix if name.suffix in _MAGIC.values() else None


@contextmanager
def packing_writer(target: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    """A file that writes to `target` what is written to it, compressed. Equal content makes equal bytes."""
    if packing == ".gz":
        writer: Any = gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0)
    else:
        writer = _zstandard().ZstdCompressor(write_checksum=True).stream_writer(target, closefd=False)
    with writer:
        yield writer


def pack(plain: Path, target: Path, packing: str) -> None:
    """Write the content of `plain` to `target`, compressed.

    Raises:
        OSError: the disk is full or failing.
    """
    with plain.open("rb") as source, target.open("wb") as file, packing_writer(file, packing) as writer:
        shutil.copyfileobj(source, writer, _CHUNK)


def is_regular_or_pipe(path: Path) -> bool:
    """Whether records can be read from it: a file, a pipe, or the standard input."""
    if path == STDIN:
        return True
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_plain_file(path: Path) -> bool:
    """Whether it can be read as it is, and again: no pipe, and not compressed; or it does not exist."""
    if path == STDIN or (path.exists() and not path.is_file()):
        return False
    if not path.exists():
        return True
    with _open(path) as file:
        return _packing(file.read(4)) is None


def _open(path: Path) -> BinaryIO:
    if path == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise DataError("the input is - but nothing is piped in; pipe the records, or give a file.")
        try:
            return open(sys.stdin.fileno(), "rb", buffering=_CHUNK, closefd=False)
        except (OSError, ValueError):  # a program that has put something else in its place
            return io.BufferedReader(sys.stdin.buffer)  # type: ignore[type-var]
    try:
        return path.open("rb", buffering=_CHUNK)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions.") from error


def _packing(start: bytes) -> str | None:
    return next((packing for magic, packing in _MAGIC.items() if start.startswith(magic)), None)


def _chunks(source: BinaryIO, size: int) -> Iterator[bytes]:
    while chunk := source.read(size):
        yield chunk


def _unpacked(path: Path, chunks: Iterator[bytes], packing: str) -> Iterator[bytes]:
    """What the parts of a compressed file hold, one after the other."""
    make: Callable[[], Any] = (
        (lambda: zlib.decompressobj(wbits=31))
        if packing == ".gz"
        else lambda: _zstandard().ZstdDecompressor().decompressobj()
    )
    errors = (zlib.error, EOFError) if packing == ".gz" else (_zstandard().ZstdError, EOFError)
    part, is_in_part = make(), False
    try:
        for chunk in chunks:
            while chunk:
                yield part.decompress(chunk)
                is_in_part, chunk = not part.eof, part.unused_data if part.eof else b""
                if part.eof:
                    part = make()
        if is_in_part:
            raise EOFError("it ends too early")
    except errors as error:
        raise DataError(f"{path} is compressed and damaged ({error}); make it again.") from error


def _zstandard() -> Any:
    import zstandard

    return zstandard


def _no_room(path: Path, scratch: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"{path} cannot be unpacked in {scratch}: {error.strerror or error}; free some space there, or unpack it first."
    )
