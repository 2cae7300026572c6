"""One worker process: takes leases from the board, works on their records, appends to its own part."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from parallelmind.errors import ParallelMindError
from parallelmind.jobs.board import Board, Lease
from parallelmind.jobs.job import WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.parts import Part, PartWriter
from parallelmind.jobs.plan import PlanReader
from parallelmind.jobs.task import RecordWorker, Task, WorkerInfo
from parallelmind.jobs.worker_state import StateFile, WorkerState, worker_lock

GAVE_UP = 3
"""Exit code of a worker that cannot work: the reason is in its state file."""

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_LEASE_SECONDS = 1.0
_LARGEST_LEASE = 8192


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker process is told when it starts."""

    task: Task
    input_path: Path
    folder: Path
    run: str
    digest: bytes
    records: int
    info: WorkerInfo
    incarnation: int
    environment: Mapping[str, str]
    """Variables of the process that differ from those of the watching process."""
    set_up: Callable[[int], None]
    """Called first, with the rank: sets up logging."""


class LifeSign:
    """Shared with the watching process: when the worker last made progress, and whether it was told to end.

    Args:
        shared: two numbers in shared memory; the first is 0 while no progress need be made.
    """

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def __call__(self) -> None:
        self._shared[0] = time.monotonic()

    def rest(self) -> None:
        self._shared[0] = 0.0

    def dismiss(self) -> None:
        """Called by the watching process before it asks the worker to end."""
        self._shared[1] = 1.0

    @property
    def dismissed(self) -> bool:
        return bool(self._shared[1])

    @property
    def silent_for(self) -> float:
        """Seconds without progress; 0 while the worker need not make any."""
        last: float = self._shared[0]
        return time.monotonic() - last if last else 0.0


class Stopped(KeyboardInterrupt):
    """The worker was asked to end, as a rule by the watching process."""


def work(assignment: Assignment, shared: Any) -> None:
    """The worker process: ends with exit code 0 when the run is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the watching process decides
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    assignment.set_up(assignment.info.rank)
    alive = LifeSign(shared)
    worker = _Worker(assignment, alive)
    try:
        worker.run()
    except Stopped:
        if not alive.dismissed:  # somebody else asked: the watching process is to see a death, and what it cost
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        worker.end()
        code = 0
    except ParallelMindError as error:
        _LOGGER.debug("the worker gives up", exc_info=True)
        worker.give_up(str(error))
        code = GAVE_UP
    else:
        worker.end()
        code = 0
    # Not sys.exit: threads of a backend that hang in the network must not hold up the end.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class _Worker:
    def __init__(self, assignment: Assignment, alive: LifeSign) -> None:
        self._told = assignment
        self._alive = alive
        rank = assignment.info.rank
        self._lock = worker_lock(assignment.folder, rank)
        self._lock.acquire()
        state = WorkerState(run=assignment.run, rank=rank, incarnation=assignment.incarnation)
        self._file = StateFile(assignment.folder, state)
        self._board = Board(assignment.folder)
        self._writer: PartWriter | None = None
        self._reader: PlanReader | None = None
        self._worker: RecordWorker | None = None
        self._lease_of: dict[int, Lease] = {}
        self._attempt_of: dict[int, int] = {}
        self._unfinished: dict[Lease, int] = {}
        self._held_back: Lease | None = None
        self._started = time.monotonic()

    def run(self) -> None:
        while True:
            view = self._board.read()
            if view.run != self._told.run or view.state != "working":
                return
            if self._held_back is None and not self._board.has_for(self._told.info.rank):
                time.sleep(_POLL_SECONDS)
                continue
            if self._worker is None:
                self._worker = self._told.task.start(self._told.info, self._sign_of_life)
                self._started = time.monotonic()
            self._phase("working")
            if self._held_back is None and not self._board.has_for(self._told.info.rank):
                self._phase("idle")
                self._alive.rest()  # loading may have called it
                continue
            # From here on the head waits for this worker; before, it may be clearing the job's files away.
            writer = self._writer = self._writer or self._open_part()
            self._alive()
            try:
                self._worker.run(self._items(), self._write)
            finally:
                writer.flush()  # what was finished before an error is kept
            assert not self._lease_of, "a worker left records without an outcome"
            self._alive.rest()
            if self._held_back is None:
                self._phase("idle")

    def end(self) -> None:
        if self._writer:
            self._writer.close()
        self._file.remove()

    def give_up(self, reason: str) -> None:
        self._file.state.error = reason
        self._file.save()

    def _open_part(self) -> PartWriter:
        told = self._told
        part = Part(told.folder, told.info.rank + 1, told.digest)
        part.check(told.records)
        return PartWriter(part)

    def _phase(self, phase: Any) -> None:
        self._file.state.phase = phase
        self._note_leases()

    def _note_leases(self) -> None:
        leases = [*self._unfinished, *([self._held_back] if self._held_back else [])]
        self._file.state.leases = [(lease.round, lease.start, lease.stop, lease.alone) for lease in leases]
        self._file.save()

    def _items(self) -> Iterator[WorkItem]:
        first = True
        while lease := self._next_lease():
            if lease.alone and not first:
                self._held_back = lease
                return
            listed = self._board.listed(lease)
            self._unfinished[lease] = len(listed)
            self._note_leases()
            reader = self._reader = self._reader or PlanReader.load(self._told.input_path, self._told.folder)
            for line, attempt in zip(reader.read(listed["record"]), listed["attempt"].tolist(), strict=True):
                self._lease_of[line.index] = lease
                self._attempt_of[line.index] = attempt
                yield WorkItem(line=line)
            if lease.alone:
                return
            first = False

    def _next_lease(self) -> Lease | None:
        lease, self._held_back = self._held_back, None
        if lease is None:
            lease = self._board.take(self._told.run, self._told.info.rank, self._wanted())
            self._file.state.taken += lease is not None
        return lease

    def _wanted(self) -> int:
        """As many records as are finished in a second."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        return min(max(1, round(self._file.state.done / seconds * _LEASE_SECONDS)), _LARGEST_LEASE)

    def _sign_of_life(self) -> None:
        self._alive()
        if self._writer:
            self._writer.flush_if_due()

    def _write(self, item: WorkItem, outcome: Outcome) -> None:
        assert self._writer
        record = item.line.index
        self._writer.append(record, self._attempt_of.pop(record), outcome)
        lease = self._lease_of.pop(record)
        self._file.state.done += 1
        self._alive()
        self._unfinished[lease] -= 1
        if not self._unfinished[lease]:
            del self._unfinished[lease]


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
