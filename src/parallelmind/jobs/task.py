"""What a job does with a record: the seam between the jobs and the pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from parallelmind.jobs.gpus import GpuShare
from parallelmind.jobs.job import WorkItem
from parallelmind.jobs.outcome import Outcome

Write = Callable[[WorkItem, Outcome], None]
"""Stores what became of a record."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Which worker this is."""

    rank: int = 0
    world_size: int = 1
    gpus: GpuShare | None = None
    """None: nothing was assigned."""


class RecordWorker(Protocol):
    """Works on records; made once per worker process."""

    def run(self, items: Iterable[WorkItem], write: Write) -> None:
        """Take every item and `write` one outcome for each, in any order, from the calling thread.

        Items are to be taken only as far ahead as there is work on them: what was taken, no other worker can take.
        """

    def close(self) -> None:
        """Free what it holds; nothing more will come."""


class Task(Protocol):
    """What the workers of a job do. It is sent to worker processes, so it must be possible to pickle it."""

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        """Load what is needed. Called in the worker process, if there is work.

        `alive` is to be called at every sign of progress: a worker that shows none for the record timeout is replaced.
        """

    def failure(self, item: WorkItem, reason: str, error_class: str) -> Outcome:
        """The outcome of a record that no worker survived. Called without `start`."""
