"""An input that was edited: the results of the records that it still has are taken over, wherever those are now.

A result holds for its record as long as the record is the same, byte for byte. What changes with the place of a record
is the number of its line, which the rows of a task may have in them (`Task.moved`); a failure that names its line is
made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.output import OutputFile, OutputReader
from parallelmind.jobs.results import BY_COORDINATOR, MEASURES
from parallelmind.jobs.source import JobInput
from parallelmind.jobs.stored import Results, StoredJob, StoredResult
from parallelmind.jobs.task import Task

_BLOCK_BYTES = 2**22
_FAILED_ROWS = MEASURES.index("failed_rows")
NOWHERE = -1
"""Where a record is that the input does not have."""


class Places:
    """Finds records of an input by their keys."""

    def __init__(self, keys: NDArray[Any]) -> None:
        halves = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)[:, 0]
        self._keys = keys
        self._order = np.argsort(halves, kind="stable")
        self._halves = halves[self._order]

    def find(self, keys: list[bytes]) -> NDArray[np.int64]:
        """The record of each key, or NOWHERE."""
        if not len(self._keys):
            return np.full(len(keys), NOWHERE)
        wanted = np.frombuffer(b"".join(keys), self._keys.dtype)
        places = np.searchsorted(self._halves, wanted.view(np.uint64).reshape(-1, 2)[:, 0])
        records = self._order[np.minimum(places, len(self._order) - 1)]
        return np.where(self._keys[records] == wanted, records, NOWHERE)


def carry_over(ledger: Ledger, job: StoredJob, output: OutputFile, source: JobInput, task: Task) -> StoredJob:
    """Number the results in the ledger after the records of the input as it is now, and store the job with that.

    Args:
        job: as it is stored; its output, if it has one, is there.
        output: what stands there.
        source: the input.
    Returns: the job as it is stored now. Its output is what may be replaced, and no result stands in it any more.
    Raises:
        JobError: the disk is full or failing; then the ledger is as it was.
    """
    places = Places(source.keys)
    with ExitStack() as stack:
        standing = stack.enter_context(output.reader()) if job.output is not None else None
        with ledger.renumbering() as last:
            batch = _Batch()
            for stored in ledger.newest(last, None if job.output is None else job.output.through):
                found = places.find([one.key for one in stored]).tolist()
                for one, record in zip(stored, found, strict=True):
                    line = NOWHERE if record == NOWHERE else int(source.numbers[record])
                    rows = _rows(ledger, standing, one)
                    if record != NOWHERE and line != one.line:
                        moved = None if one.measures[_FAILED_ROWS] else task.moved(rows, line)
                        if moved is None:
                            continue
                        rows = moved
                    batch.take(one, record, line, rows)
                    if batch.size >= _BLOCK_BYTES:
                        batch = batch.put(ledger)
            batch.put(ledger)
            ledger.move_suspicions(lambda keys: places.find(keys).tolist())
            kept = None if job.output is None else job.output.emptied()
            now = job.on_input(source.summary, kept)
            ledger.put_job(now)
    return now


def shares_records(ledger: Ledger, source: JobInput) -> bool:
    """Whether at least half of the records that have a result stand in the input."""
    places = Places(source.keys)
    results = found = 0
    for keys in ledger.bound_to():
        results += len(keys)
        found += int(np.count_nonzero(places.find(keys) != NOWHERE))
    return 0 < results <= 2 * found


def _rows(ledger: Ledger, standing: OutputReader | None, one: StoredResult) -> bytes:
    if one.block is None:
        assert standing is not None
        return standing.read(one.offset, one.size)
    return ledger.read(one.block, one.offset, one.size)


@dataclass
class _Batch:
    """Results that are put into the ledger together, by the worker that made them."""

    size: int = 0
    by_worker: dict[int | None, list[tuple[StoredResult, int, int, bytes]]] = field(default_factory=dict)

    def take(self, one: StoredResult, record: int, line: int, rows: bytes) -> None:
        self.by_worker.setdefault(one.worker, []).append((one, record, line, rows))
        self.size += len(rows) + 100

    def put(self, ledger: Ledger) -> _Batch:
        for results in self._results():
            ledger.add(results)
        return _Batch()

    def _results(self) -> Iterator[Results]:
        for worker, taken in self.by_worker.items():
            stored, records, lines, rows = zip(*taken, strict=True)
            yield Results(
                records=np.array(records),
                lines=np.array(lines),
                keys=np.array([np.void(one.key) for one in stored]),
                worker=BY_COORDINATOR if worker is None else worker + 1,
                attempts=np.array([one.attempt for one in stored]),
                sizes=[len(one) for one in rows],
                measures=list(zip(*(one.measures for one in stored), strict=True)),
                payload=b"".join(rows),
            )
