"""The coordinator of a job: gives out leases, takes results into the ledger, and replaces workers that are lost.

With worker processes it loads no model and runs no record, so that no record can take it down. How they are reached is
a matter of the transport (`transports`); what they may do is not.
"""

from __future__ import annotations

import itertools
import logging
import queue
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError, ParallelMindError
from parallelmind.jobs.identity import edited_files
from parallelmind.jobs.leases import Leases
from parallelmind.jobs.messages import (
    Ask,
    Beat,
    Finished,
    FromWorker,
    GaveUp,
    Idle,
    Load,
    Loaded,
    Records,
    Rest,
    Stop,
    ToWorker,
)
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.options import LATE_SECONDS
from parallelmind.jobs.quarantine import Death, Quarantine
from parallelmind.jobs.task import WorkerInfo
from parallelmind.jobs.transports.base import Ended, Inbox, MakeTransport, Received, Transport
from parallelmind.jobs.worker import Worker
from parallelmind.jobs.worker_state import WorkerState

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_DEAF_SECONDS = 1.0
"""A longer time between two looks at the workers counts against none of them."""
_TURN_SECONDS = 0.02
"""After so long, what was heard is committed."""
_LEASE_BYTES = 2**24
"""Of the input, in one lease."""
_EDITS = 20
"""So often a run takes up edits of its input."""

OnPoll = Callable[[bool], None]
"""Called often, with whether a worker has its model and works."""


class Coordinator:
    """Brings every record of an open job to its result.

    Args:
        record_timeout: seconds without progress after which a worker that has records is replaced; 0: never.
        keep_apart: each worker does no more than its own slice, see `leases.whose_next`.
        late: seconds after which a worker that has taken nothing is not waited for, as there.
    """

    def __init__(
        self,
        job: OpenJob,
        *,
        world_size: int,
        record_timeout: float = 0.0,
        keep_apart: bool = False,
        late: float = LATE_SECONDS,
    ) -> None:
        self._job = job
        self._record_timeout = record_timeout
        self._workers = [WorkerState() for _ in range(world_size)]
        self._inbox: Inbox = Inbox()
        self._keep_apart = keep_apart
        self._late = late
        self._files = {socket.gethostname(): dict(job.files)}
        """The files of the task as the first worker of each machine found them."""
        self._listened = time.monotonic()
        self._has_begun = False
        self._found_edits = False
        self._edits_left = _EDITS
        self._quarantine = Quarantine(job.ledger.quarantine())
        self._take_up_lost_leases()
        self._leases = self._plan(last_fence=0)

    @property
    def is_over(self) -> bool:
        """Whether every record has its result."""
        return self._leases.is_over

    def run(self, make_transport: MakeTransport, on_poll: OnPoll) -> None:
        """Follow the workers until every record has its result.

        Raises:
            JobError: no worker is left and records have no result, or the disk is full.
        """
        transport = make_transport(self._inbox)
        error: str | None = "interrupted"
        try:
            for rank in range(len(self._workers)):
                transport.start(rank)
            while self._has_work():
                self._take_messages(transport)
                self._give(transport)
                self._job.ledger.commit()
                self._end_hung_workers(transport)
                transport.check()
                on_poll(self._has_begun)
            for rank, worker in enumerate(self._workers):
                if worker.state == "loading":  # which may take long, and nobody needs it any more
                    transport.kill(rank)
                else:
                    transport.send(rank, Stop())
            error = None
        except ParallelMindError as problem:
            error = str(problem)
            raise
        finally:
            try:
                self.close()
            finally:
                transport.close(error)

    def work_here(self, on_poll: OnPoll) -> None:
        """Bring every record to its result in this process.

        Raises:
            ParallelMindError: the model cannot be loaded, or the disk is full; what was done is kept.
        """
        job = self._job
        wanted: int | None = None
        is_loaded = False

        def receive() -> ToWorker:
            nonlocal wanted, is_loaded
            if not is_loaded:
                is_loaded = True
                return Load()
            if wanted is not None and (records := self.lease(0, wanted)):
                wanted = None
                return records
            return Rest() if self._has_work() else Stop()

        def send(message: FromWorker) -> None:
            nonlocal wanted
            if isinstance(message, Finished):
                self.accept(0, message)
                self._job.ledger.commit()
            elif isinstance(message, Loaded) and message.files != job.files:
                raise edited_files(job.files, message.files)
            elif isinstance(message, Ask | Idle):
                wanted = message.wanted
            on_poll(self._has_begun)

        try:
            Worker(self._job.task, WorkerInfo(), receive=receive, send=send, in_time=False).run()
        finally:
            self.close()

    def close(self) -> None:
        """Store what is known: nobody works any more, and nobody is to blame."""
        self._job.ledger.drop_leases(list(self._leases.held))
        self._job.ledger.commit()

    def lease(self, rank: int, wanted: int) -> Records | None:
        """Up to `wanted` records for a worker; None if there is none for it at present.

        Raises:
            JobError: the disk is full.
        """
        while (lease := self._leases.take(rank, wanted)) is not None:
            found = self._job.input.read(lease.records)
            numbers = self._job.input.numbers[lease.records].tolist()
            keys = self._job.input.keys[lease.records].tolist()
            columns: list[list[Any]] = [lease.records.tolist(), numbers, found.contents, found.sizes, keys]
            if not all(found.intact):
                self._found_edits = True
                edited = [record for record, intact in zip(columns[0], found.intact, strict=True) if not intact]
                self._leases.finish(lease.fence, edited)
                columns = [list(itertools.compress(column, found.intact)) for column in columns]
            if columns[0]:
                self._job.ledger.note_lease(lease.fence, rank, lease.alone, np.array(columns[0]))
                self._workers[rank].has_begun = self._has_begun = True
                return Records(lease.fence, lease.alone, *columns)
        return None

    def accept(self, rank: int, finished: Finished) -> None:
        """Take results into the ledger, if their lease was not revoked.

        Raises:
            JobError: the disk is full.
        """
        counts = self._leases.finish(finished.fence, finished.records)
        if not all(counts):
            finished = finished.chosen(counts)
        if not finished.records:
            return
        self._workers[rank].has_finished = True
        self._job.add(
            np.array(finished.records, np.int64),
            worker=rank + 1,
            sizes=finished.sizes,
            measures=list(zip(*finished.measures, strict=True)),
            payload=finished.payload,
        )
        if finished.fence not in self._leases.held:
            self._job.ledger.drop_leases([finished.fence])

    def _has_work(self) -> bool:
        """Whether a record has no result, also of those that edits of the input brought.

        Raises:
            ParallelMindError: the input is gone, or does not come to rest.
        """
        while self._leases.is_over:
            if not self._found_edits and self._job.input.is_current():
                return False
            if not self._edits_left:
                raise JobError(
                    f"{self._job.input.path} was edited {_EDITS} times while the job ran; when it is at rest, start "
                    "the same command again: it works on what changed."
                )
            self._edits_left -= 1
            self._found_edits = False
            self._job.take_up_edits()
            self._quarantine = Quarantine(self._job.ledger.quarantine())
            self._leases = self._plan(last_fence=self._leases.last_fence)
        return True

    def _plan(self, *, last_fence: int) -> Leases:
        """Leases for all records without a result."""
        job = self._job
        todo = job.todo()
        is_suspect = np.isin(todo, np.array(self._quarantine.suspects(), np.int64))
        together, groups = todo[~is_suspect], job.input.groups
        alone = [record for record in todo[is_suspect].tolist() if not self._is_given_up(record)]
        leases = Leases(
            together,
            workers=len(self._workers),
            alone=alone,
            groups=None if groups is None else groups[together],
            fitting=self._fitting,
            keep_apart=self._keep_apart,
            late=self._late,
            last_fence=last_fence,
        )
        for rank, worker in enumerate(self._workers):
            if worker.given_up:
                leases.give_up(rank)
        return leases

    def _take_up_lost_leases(self) -> None:
        """What an earlier run, which was killed as a whole, had given out."""
        ledger, index = self._job.ledger, self._job.index
        lost = ledger.leases()
        for _, records in lost:
            todo = [record for record in records.tolist() if record < len(index) and index.is_todo(record)]
            self._save(self._quarantine.note_lost_run(todo))
        ledger.drop_leases([fence for fence, _ in lost])
        ledger.commit()

    def _save(self, suspects: Iterable[int]) -> None:
        for record in suspects:
            key = self._job.input.keys[record].tobytes()
            self._job.ledger.save_suspicion(record, key, self._quarantine.of(record))

    def _fitting(self, records: NDArray[np.int64]) -> int:
        return int(np.searchsorted(np.cumsum(self._job.input.sizes(records)), _LEASE_BYTES, side="right"))

    def _take_messages(self, transport: Transport) -> None:
        """Wait a moment for one, then take those that are there."""
        until = time.monotonic() + _TURN_SECONDS
        try:
            event = self._inbox.get(timeout=_POLL_SECONDS)
            while True:
                if isinstance(event, Ended):
                    self._bury(event, transport)
                else:
                    self._hear(event, transport)
                if time.monotonic() > until:
                    return
                event = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _hear(self, event: Received, transport: Transport) -> None:
        worker = self._workers[event.rank]
        worker.hears(event.at, progress=not isinstance(event.message, Beat))
        match event.message:
            case Finished():
                self.accept(event.rank, event.message)
            case Ask(wanted):
                transport.send(event.rank, self.lease(event.rank, wanted) or Rest())
            case Loaded(host, files):
                if (known := self._files.setdefault(host, files)) != files:
                    worker.given_up = str(edited_files(known, files))
                    transport.kill(event.rank)
            case Idle(wanted):
                worker.state, worker.wanted = "idle", wanted
            case GaveUp(reason):
                worker.given_up = reason

    def _give(self, transport: Transport) -> None:
        """Leases to the workers that wait for one; those that will have one are to load what it takes."""
        for rank, worker in enumerate(self._workers):
            if worker.state == "new" and self._leases.has_for(rank):
                worker.state, worker.last_beat = "loading", time.monotonic()
                transport.send(rank, Load())
            elif worker.state == "idle" and (lease := self.lease(rank, worker.wanted)):
                worker.state, worker.last_sign = "working", time.monotonic()
                transport.send(rank, lease)

    def _end_hung_workers(self, transport: Transport) -> None:
        now = time.monotonic()
        # What this process did not hear while it did other things, or was stopped itself, no worker is to blame for.
        deaf = max(0.0, now - self._listened - _DEAF_SECONDS)
        self._listened = now
        for rank, worker in enumerate(self._workers):
            worker.forgive(deaf)
            if self._record_timeout and (reason := worker.hang(now, self._record_timeout)):
                if not self._inbox.empty():
                    return  # a sign of life may be among what was not heard yet
                worker.hung = Death(reason, "Timeout")
                transport.kill(rank)
                self._take_back(rank, worker.hung)

    def _bury(self, event: Ended, transport: Transport) -> None:
        """A worker is gone: what it had is for others, and another one takes its place."""
        rank, worker = event.rank, self._workers[event.rank]
        death = worker.hung or event.death
        self._take_back(rank, death)
        worker.bury(rank, death, for_good=event.for_good)
        if worker.given_up:
            self._leases.give_up(rank)
            self._check_workers()
        elif not self.is_over:
            _LOGGER.warning("worker %d %s; a new one takes its place", rank, death.reason)
            transport.start(rank)

    def _take_back(self, rank: int, death: Death) -> None:
        """Revoke the leases of a worker; what it had is under suspicion, unless it gave up by itself."""
        gave_up = bool(self._workers[rank].given_up)
        revoked = self._leases.revoke(rank)
        for lease in revoked:
            left = sorted(lease.left)
            if gave_up and not lease.alone:
                self._leases.give_back(left)
                continue
            if not gave_up:
                self._save(self._quarantine.note_death(left, death, alone=lease.alone))
            for record in left:
                self._isolate(record)
        self._job.ledger.drop_leases([lease.fence for lease in revoked])

    def _isolate(self, record: int) -> None:
        """Run the record alone, or give it up."""
        if not self._is_given_up(record):
            self._leases.isolate(record)

    def _is_given_up(self, record: int) -> bool:
        """Whether the record is not run any more; then it has its result."""
        death = self._quarantine.of(record).death
        if death is None:
            return False
        line = self._job.input.line(record)
        if line is None:
            self._found_edits = True
            return True
        reason = f"line {line.number}: {death.reason}."
        _LOGGER.warning("failed: %s", reason)
        self._job.add_one(record, self._job.task.failure(line, reason, death.error_class))
        return True

    def _check_workers(self) -> None:
        if self.is_over or not all(worker.given_up for worker in self._workers):
            return
        missing = len(self._job.todo())
        reasons = "; ".join(dict.fromkeys(worker.given_up.rstrip(".") for worker in self._workers))
        raise JobError(
            f"{reasons}. {missing} records have no result yet: with that mended, the command continues where it was."
        )
