"""The output of a job: derived from the ledger, in input order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from parallelmind.errors import JobError
from parallelmind.io.compression import open_plain, pack, packing_of
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.results import IN_OUTPUT, ResultIndex
from parallelmind.jobs.storage import put_in_place, storage_error

_CHUNK = 2**20
_ERROR_KEPT = 500


class OutputFile:
    """The file with the rows of all records, compressed if its name says so (.gz, .zst).

    Args:
        folder: of the job, for what is being written.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self._folder = folder
        self._packing = packing_of(path)
        self._written = folder / "output.tmp"
        self._packed = folder / "output.packed.tmp"

    @property
    def has_content(self) -> bool:
        return self.path.exists() and bool(self.path.stat().st_size)

    def digest(self) -> str:
        """The hash of the file that is there."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def reader(self) -> Iterator[OutputReader]:
        """Reads rows of the file that is there."""
        with open_plain(self.path, self._folder) as file:
            yield OutputReader(self.path, file)

    def write(self, index: ResultIndex, ledger: Ledger) -> tuple[int, str]:
        """Write the rows of every record beside the file that is there; returns the number of bytes and their hash.

        Raises:
            JobError: the disk is full or failing.
        """
        temporary = self._written
        try:
            with contextlib.ExitStack() as stack:
                output = stack.enter_context(temporary.open("wb", buffering=_CHUNK))
                before: OutputReader | None = None
                for block, offset, size in index.runs():
                    if block == IN_OUTPUT:
                        before = before or stack.enter_context(self.reader())
                    while size:
                        part = min(size, _CHUNK)
                        if before and block == IN_OUTPUT:
                            output.write(before.read(offset, part))
                        else:
                            output.write(ledger.read(block, offset, part))
                        offset, size = offset + part, size - part
            if self._packing:
                temporary = self._packed
                pack(self._written, temporary, self._packing)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise storage_error(temporary, error) from error

    def put_in_place(self) -> None:
        """What was written takes the place of the file that is there.

        Raises:
            JobError: the disk is failing.
        """
        put_in_place(self._packed if self._packing else self._written, self.path)

    def clean(self) -> None:
        """Remove what was being written and did not get into its place."""
        for file in (self._written, self._packed):
            file.unlink(missing_ok=True)


class OutputReader:
    """Reads rows of a finished output by their place."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        """Raises:
        JobError: the file became shorter.
        """
        self._file.seek(offset)
        content = self._file.read(size)
        if len(content) < size:
            raise JobError(f"{self._path} changed while the job ran; start the same command again.")
        return content


def errors(index: ResultIndex, output: OutputFile) -> Iterator[tuple[int, str]]:
    """(record, first error in its rows) of each failed record of a finished output, in input order."""
    sizes = index.size.astype(np.int64)
    offsets = np.cumsum(sizes) - sizes
    failed = index.failed_records().tolist()
    if not failed:
        return
    with output.reader() as reader:
        for record in failed:
            content = reader.read(int(offsets[record]), int(sizes[record]))
            found = (json.loads(row).get("error") for row in content.splitlines())
            reason = next((str(error) for error in found if error is not None), "")
            # For logs and terminals, which take no half of a surrogate pair.
            yield record, reason[:_ERROR_KEPT].encode("utf-8", "replace").decode("utf-8")
