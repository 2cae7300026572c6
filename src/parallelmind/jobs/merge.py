"""Derive the output from the part files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from parallelmind.errors import JobError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.parts import read_header, storage_error

__all__ = ["merge_parts"]


def merge_parts(index: ResultIndex, parts: Sequence[Path], temporary: Path, out_path: Path) -> int:
    """Write every record's rows in input order and put the file in place at once; return its bytes.

    `temporary` is on the disk of `out_path`. A reader of `out_path` sees the old file or the whole new one.

    Raises:
        JobError: the disk is full or failing, or a part changed under the job.
    """
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in parts]
            output = stack.enter_context(temporary.open("wb", buffering=2**20))
            for place in range(len(index)):
                part, offset = index.location(place)
                files[part].seek(offset)
                entry = read_header(files[part])
                if entry is None or entry.index != place:
                    raise JobError(f"{parts[part]} changed while the job ran; start the same command again.")
                output.write(files[part].read(entry.size))
            output.flush()
            os.fsync(output.fileno())
            size = output.tell()
        temporary.replace(out_path)
        _sync_folder(out_path.parent)
    except OSError as error:
        raise storage_error(out_path, error) from error
    return size


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some systems cannot open folders, and then do not need this.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
