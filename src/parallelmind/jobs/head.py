"""The head of a run: gives out the work in rounds until every record has its outcome, then merges.

It loads no model and runs no record, so that no record can take it down.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError, ParallelMindError
from parallelmind.jobs.board import Board
from parallelmind.jobs.job import HEAD_PART, Job, WorkItem
from parallelmind.jobs.plan import PlanReader
from parallelmind.jobs.spec import Completion
from parallelmind.jobs.supervisor import Supervisor
from parallelmind.jobs.suspects import Suspects
from parallelmind.jobs.task import Task
from parallelmind.jobs.worker_state import is_any_working, worker_lock

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_ORPHAN_SECONDS = 30.0
_END_SECONDS = 30.0


class Head:
    """Runs an open job with the workers of a supervisor, which may be part of a larger world."""

    def __init__(self, job: Job, task: Task, *, run: str, world_size: int, keep_apart: bool = False) -> None:
        self._keep_apart = keep_apart
        self._given_up: set[int] = set()
        self._job = job
        self._task = task
        self._run = run
        self._world_size = world_size
        self._board = Board(job.folder)
        self._suspects = Suspects(job.folder)
        self._round = 0

    def prepare(self) -> None:
        """Clear away earlier runs and give out the first round; then workers may start.

        Raises:
            JobError: a worker of an earlier run still lives.
        """
        self._wait_for_orphans()
        self._suspects.collect(self._board, self._job.index, earlier_runs=True)
        for path in self._job.folder.glob("gave-up-*.json"):
            path.unlink()
        self._job.plan.save(self._job.folder)
        self._board.begin(self._run, self._job.digest, self._job.input.records, keep_apart=self._keep_apart)
        self._open_round()

    def run(self, supervisor: Supervisor, on_poll: Callable[[], None]) -> Completion:
        """Follow the workers to the end of the job.

        Raises:
            JobError: no worker is left and records have no result, or the disk is full.
        """
        job = self._job
        try:
            while True:
                supervisor.poll()
                # Read in this order: a worker is "working" before it takes, and appends before it stops working.
                round_over = not self._board.read().left and not is_any_working(job.folder)
                job.refresh()
                on_poll()
                if round_over:
                    if not len(job.todo()):
                        break
                    self._suspects.collect(self._board, job.index)
                    self._open_round()
                self._check_workers(supervisor)
                time.sleep(_POLL_SECONDS)
            completion = job.finish()
        except ParallelMindError as error:
            self._board.close("failed", str(error))
            raise
        except BaseException:
            self._board.close("failed", "interrupted")
            raise
        self._suspects.forget()
        self._board.close("complete")
        supervisor.wait(_END_SECONDS)
        return completion

    def _open_round(self) -> None:
        todo = self._job.todo()
        alone = self._suspects.alone(todo)
        lost = self._give_up(todo[alone])
        together, single = todo[~alone], todo[alone][~lost]
        records = np.concatenate((together, single))
        groups = self._job.plan.groups
        self._round += 1
        self._board.open_round(
            self._round,
            records,
            self._job.index.attempt[records] + 1,
            workers=self._world_size,
            alone=len(single),
            groups=None if groups is None else groups[together],
        )

    def _give_up(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Write the outcome of those records that no worker survives; which they are."""
        deaths = [self._suspects.given_up(record) for record in records.tolist()]
        lost = np.array([death is not None for death in deaths], np.bool_)
        plan = self._job.plan
        reader = PlanReader(self._job.input_path, plan.offsets, plan.numbers)
        found = [death for death in deaths if death is not None]
        for line, death in zip(reader.read(records[lost]), found, strict=True):
            item = WorkItem(line=line)
            reason = f"line {line.number}: {death.reason}."
            _LOGGER.warning("failed: %s", reason)
            self._job.write(item, self._task.failure(item, reason, death.error_class), part=HEAD_PART)
        reader.close()
        return lost

    def _wait_for_orphans(self) -> None:
        until = time.monotonic() + _ORPHAN_SECONDS
        for path in self._job.folder.glob("worker-*.lock"):
            rank = int(path.stem.removeprefix("worker-"))
            while worker_lock(self._job.folder, rank).is_held():
                if time.monotonic() > until:
                    raise JobError(
                        f"a worker of an earlier run still works on {self._job.out_path} (it holds {path}); "
                        "end it and start the same command again."
                    )
                time.sleep(_POLL_SECONDS)

    def _check_workers(self, supervisor: Supervisor) -> None:
        gave_up = supervisor.gave_up | _given_up_elsewhere(self._job.folder, self._run)
        if len(gave_up) < self._world_size:
            if gave_up.keys() - self._given_up:
                self._given_up |= gave_up.keys()
                self._board.give_up(self._given_up)
            return
        missing = len(self._job.todo())
        reasons = "; ".join(dict.fromkeys(reason.rstrip(".") for _, reason in sorted(gave_up.items())))
        raise JobError(
            f"{reasons}. {missing} records have no result yet: with that mended, the command continues where it was."
        )


def note_given_up(folder: Path, run: str, gave_up: dict[int, str]) -> None:
    """Tell the head of another process which workers are not replaced any more."""
    for rank, reason in gave_up.items():
        path = folder / f"gave-up-{rank:05d}.json"
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"run": run, "rank": rank, "reason": reason}), encoding="utf-8")
            temporary.replace(path)


def _given_up_elsewhere(folder: Path, run: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in folder.glob("gave-up-*.json"):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["run"] == run:
            found[content["rank"]] = content["reason"]
    return found
