"""The output of a job: derived from the ledger, in input order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parallelmind.errors import JobError
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.results import IN_OUTPUT, ResultIndex
from parallelmind.jobs.storage import storage_error

_CHUNK = 2**20
_ERROR_KEPT = 500


def write_output(index: ResultIndex, ledger: Ledger, standing: Path, temporary: Path) -> tuple[int, str]:
    """Write the rows of every record to `temporary`; returns the number of bytes and their hash.

    Args:
        standing: the finished output, which has the rows of results that stand in it.
    Raises:
        JobError: the disk is full or failing.
    """
    hasher = hashlib.sha256()
    try:
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(temporary.open("wb", buffering=_CHUNK))
            before = None
            for block, offset, size in index.runs():
                if block == IN_OUTPUT:
                    before = before or stack.enter_context(standing.open("rb"))
                    before.seek(offset)
                while size:
                    part = min(size, _CHUNK)
                    content = before.read(part) if before and block == IN_OUTPUT else ledger.read(block, offset, part)
                    if not content:
                        raise JobError(f"{standing} changed while the job ran; start the same command again.")
                    output.write(content)
                    hasher.update(content)
                    offset, size = offset + len(content), size - len(content)
            output.flush()
            os.fsync(output.fileno())
            total = output.tell()
    except OSError as error:
        raise storage_error(temporary, error) from error
    return total, hasher.hexdigest()


def digest_of(output: Path) -> str:
    """The hash of an output that is there."""
    with output.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def errors(index: ResultIndex, output: Path) -> Iterator[tuple[int, str]]:
    """(record, first error in its rows) of each failed record of a finished output, in input order."""
    sizes = index.size.astype(np.int64)
    offsets = np.cumsum(sizes) - sizes
    for record in index.failed_records().tolist():
        with output.open("rb") as file:
            file.seek(int(offsets[record]))
            content = file.read(int(sizes[record]))
        found = (json.loads(row).get("error") for row in content.splitlines())
        reason = next((str(error) for error in found if error is not None), "")
        # For logs and terminals, which take no half of a surrogate pair.
        yield record, reason[:_ERROR_KEPT].encode("utf-8", "replace").decode("utf-8")
