"""Derive the output from the part files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parallelmind.errors import JobError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.outcome import new_hash
from parallelmind.jobs.parts import storage_error

_CHUNK = 2**20


def merge_parts(index: ResultIndex, rows_files: Mapping[int, Path], temporary: Path) -> tuple[int, str]:
    """Write every record's rows in input order; return the number of bytes and their hash.

    Raises:
        JobError: the disk is full or failing, or a part changed under the job.
    """
    hasher = new_hash()
    try:
        with contextlib.ExitStack() as stack:
            files = {
                number: stack.enter_context(path.open("rb", buffering=0))
                for number, path in rows_files.items()
                if path.exists()
            }
            output = stack.enter_context(temporary.open("wb", buffering=_CHUNK))
            for part, offset, size in _runs(index):
                if not _copy(files[part], output, hasher, offset, size):
                    raise JobError(f"{rows_files[part]} changed while the job ran; start the same command again.")
            output.flush()
            os.fsync(output.fileno())
            total = output.tell()
    except OSError as error:
        raise storage_error(temporary, error) from error
    return total, hasher.hexdigest()


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


def _runs(index: ResultIndex) -> Iterator[tuple[int, int, int]]:
    """(part, offset, size) of stretches of a part that follow each other in the output too."""
    if not len(index):
        return
    part, offset, end = index.part, index.offset, index.offset + index.size
    breaks = (part[1:] != part[:-1]) | (offset[1:] != end[:-1])
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lasts = np.concatenate((starts[1:], [len(index)])) - 1
    for block in range(0, len(starts), 2**16):
        chosen, last = starts[block : block + 2**16], lasts[block : block + 2**16]
        sizes = end[last] - offset[chosen]
        yield from zip(part[chosen].tolist(), offset[chosen].tolist(), sizes.tolist(), strict=True)


def _copy(source: BinaryIO, output: BinaryIO, hasher: Any, offset: int, size: int) -> bool:
    source.seek(offset)
    while size:
        content = source.read(min(size, _CHUNK))
        if not content:
            return False
        output.write(content)
        hasher.update(content)
        size -= len(content)
    return True


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some systems cannot open folders, and then do not need this.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
