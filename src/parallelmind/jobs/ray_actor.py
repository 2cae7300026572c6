"""The worker of a job as a Ray actor: takes records, gives outcomes, on whatever node Ray put it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.job import WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.task import Task, WorkerInfo

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Exchange:
    """What a worker hands back."""

    finished: list[tuple[int, Outcome]]
    """(record, outcome)"""
    ready: bool
    """It has loaded what it needs."""
    starved: bool
    """It could have used more records."""
    silent_for: float
    """Seconds since it last made progress; 0 while it loads or has nothing to do."""
    error: BaseException | None = None
    """Why it cannot work."""


class RayWorker:
    """Runs the task's record worker in a thread of its own; `exchange` feeds and empties it."""

    def __init__(self, task: Task, info: WorkerInfo, set_up: Callable[[int], None]) -> None:
        self._task = task
        self._info = info
        self._set_up = set_up
        self._incoming: queue.SimpleQueue[JsonLine | None] = queue.SimpleQueue()
        self._finished: list[tuple[int, Outcome]] = []
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ready = False
        self._waiting = False
        self._unfinished = 0
        self._last = 0.0
        self._thread: threading.Thread | None = None

    def exchange(self, lines: list[JsonLine], last: bool) -> Exchange:
        """Take these records; wait a moment for outcomes, and return those there are.

        `last`: none follow for now, so that what was taken is to be brought to its end.
        """
        if self._thread is None:
            self._set_up(self._info.rank)
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        with self._changed:
            self._unfinished += len(lines)
            for line in lines:
                self._incoming.put(line)
            if last:
                self._incoming.put(None)
            self._changed.wait_for(lambda: self._finished or self._error or self._waiting, timeout=_WAIT_SECONDS)
            finished, self._finished = self._finished, []
            self._unfinished -= len(finished)
            silent = time.monotonic() - self._last if self._last and self._unfinished else 0.0
            return Exchange(finished, self._ready, self._waiting, silent, self._error)

    def _work(self) -> None:
        try:
            worker = self._task.start(self._info, self._alive)
            self._ready = True
            while True:
                worker.run(self._items(), self._write)
        except BaseException as error:  # handed to the head of the run, which decides
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _items(self) -> Iterator[WorkItem]:
        while True:
            if self._incoming.empty():
                with self._changed:
                    self._waiting = True
                    self._changed.notify_all()
            line = self._incoming.get()
            self._waiting = False
            if line is None:
                return
            self._alive()
            yield WorkItem(line=line)

    def _write(self, item: WorkItem, outcome: Outcome) -> None:
        self._alive()
        with self._changed:
            self._finished.append((item.line.index, outcome))
            self._changed.notify_all()

    def _alive(self) -> None:
        self._last = time.monotonic()
