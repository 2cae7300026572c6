"""The worker's side of a job, over any transport: takes leases, works on their records, hands over results."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from parallelmind.errors import ParallelMindError
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.identity import edited_files
from parallelmind.jobs.messages import (
    Alive,
    Ask,
    Beat,
    Finished,
    FromWorker,
    GaveUp,
    Idle,
    Load,
    Loaded,
    Records,
    Stop,
    ToWorker,
)
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.task import RecordWorker, Task, WorkerInfo

_LEASE_SECONDS = 1.0
_LARGEST_LEASE = 8192
_AHEAD_SECONDS = 0.05
"""The next lease is asked for so long before the records run out."""
_HAND_OVER_SECONDS = 0.02
"""No result waits longer in the worker."""
_HAND_OVER_BYTES = 2**20
_ALIVE_SECONDS = 0.05
_BEAT_SECONDS = 0.5


class Worker:
    """Runs the task's record worker until it is told to stop.

    Args:
        receive: waits for the next message.
        send: is called by one thread at a time.
        in_time: results are handed over, and signs of life given, in time also while the task calls nothing; `send`
            must not fail then.
    """

    def __init__(
        self,
        task: Task,
        info: WorkerInfo,
        *,
        receive: Callable[[], ToWorker],
        send: Callable[[FromWorker], None],
        in_time: bool = True,
    ) -> None:
        self._task = task
        self._info = info
        self._receive = receive
        self._outbox = _Outbox(send, in_time=in_time)
        self._fence_of: dict[int, int] = {}
        self._done = 0
        self._started = 0.0
        self._stopped = False

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            ParallelMindError: this worker cannot work; what it finished was handed over.
        """
        worker: RecordWorker | None = None
        try:
            while not self._stopped and not isinstance(message := self._receive(), Stop):
                if isinstance(message, Load):
                    before = dict(self._task.files())
                    worker = self._task.start(self._info, self._outbox.alive)
                    if (now := dict(self._task.files())) != before:
                        raise edited_files(before, now)
                    self._outbox.send(Loaded(socket.gethostname(), now))
                    self._started = time.monotonic()
                elif isinstance(message, Records):
                    assert worker
                    worker.run(self._lines(message), self._write)
                    assert not self._fence_of, "a worker left records without a result"
                self._outbox.flush()
                self._outbox.send(Idle(self._wanted()))
        finally:
            self._outbox.flush()  # what was finished before an error is kept
        if worker:
            worker.close()

    def run_or_give_up(self) -> bool:
        """Work until told to stop; tell it if that cannot be, and return False."""
        try:
            self.run()
        except ParallelMindError as error:
            self._outbox.send(GaveUp(str(error)))
            return False
        return True

    def _lines(self, lease: Records) -> Iterator[JsonLine]:
        while True:
            last = len(lease.indexes) - 1
            ask_at = max(0, last - int(self._rate() * _AHEAD_SECONDS))
            asked = False
            columns = zip(lease.indexes, lease.numbers, lease.contents, lease.sizes, lease.keys, strict=True)
            for place, (index, number, content, size, key) in enumerate(columns):
                if place == ask_at < last and not lease.alone:
                    self._outbox.send(Ask(self._wanted()))
                    asked = True
                self._fence_of[index] = lease.fence
                yield JsonLine(index, number, content, size, key)
            if lease.alone:
                return
            if not asked:
                self._outbox.send(Ask(self._wanted()))
            self._outbox.flush()
            message = self._receive()
            if not isinstance(message, Records):
                self._stopped = isinstance(message, Stop)
                return
            lease = message

    def _write(self, line: JsonLine, result: RecordResult) -> None:
        self._done += 1
        self._outbox.add(self._fence_of.pop(line.index), line.index, result)

    def _rate(self) -> float:
        """Records a second."""
        return self._done / max(time.monotonic() - self._started, 1e-3)

    def _wanted(self) -> int:
        return min(max(1, round(self._rate() * _LEASE_SECONDS)), _LARGEST_LEASE)


@dataclass(slots=True)
class _Waiting:
    """Results of one lease that were not handed over yet."""

    records: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    measures: list[tuple[Any, ...]] = field(default_factory=list)


class _Outbox:
    """Hands results over many at once; none waits longer than 20 milliseconds."""

    def __init__(self, send: Callable[[FromWorker], None], *, in_time: bool) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._bytes = 0
        self._sent = 0.0
        self._has_results = threading.Event()
        self._flushed = 0.0
        if in_time:
            threading.Thread(target=self._hand_over_in_time, daemon=True).start()
            threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: FromWorker) -> None:
        with self._lock:
            if not isinstance(message, Beat):
                self._sent = time.monotonic()
            self._send(message)

    def alive(self) -> None:
        now = time.monotonic()
        if self._waiting and now - self._flushed >= _HAND_OVER_SECONDS:
            self.flush()
        elif now - self._sent >= _ALIVE_SECONDS:
            self.send(Alive())

    def add(self, fence: int, record: int, result: RecordResult) -> None:
        payload = result.payload
        with self._lock:
            if (waiting := self._waiting.get(fence)) is None:
                waiting = self._waiting[fence] = _Waiting()
                self._has_results.set()
            waiting.records.append(record)
            waiting.payloads.append(payload)
            waiting.measures.append(result[1:])
            self._bytes += len(payload)
            if self._bytes >= _HAND_OVER_BYTES or time.monotonic() - self._flushed >= _HAND_OVER_SECONDS:
                self._flush()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._has_results.clear()
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        self._flushed = self._sent = time.monotonic()
        for fence, results in waiting.items():
            sizes = [len(payload) for payload in results.payloads]
            self._send(Finished(fence, results.records, sizes, results.measures, b"".join(results.payloads)))

    def _beat(self) -> None:
        while True:
            self.send(Beat())
            time.sleep(_BEAT_SECONDS)

    def _hand_over_in_time(self) -> None:
        while True:
            self._has_results.wait()
            time.sleep(_HAND_OVER_SECONDS)
            self.flush()
