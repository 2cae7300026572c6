"""Run a function over rows in a bounded number of threads, with every result handed over in the calling thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from parallelmind.answering.backends.clock import StoppedError

T = TypeVar("T")
R = TypeVar("R")


def run_bounded(
    rows: Iterable[T],
    call: Callable[[T], R],
    done: Callable[[T, R], None],
    *,
    concurrency: int,
    stop: threading.Event,
) -> None:
    """Call `done(row, call(row))` for every row; `call` runs in up to `concurrency` threads, `done` in this one.

    An exception of `call` ends the run: what was finished before is still handed over, the rest is abandoned, and the
    exception is raised here. So does one of `rows` or `done`, or an interrupt, without handing over. `stop` is set at
    the end in any case, and whatever waits by it gives up. The threads are daemons: one that waits for a server cannot
    be woken, and must not keep the program from ending.
    """
    crew = _Crew(call)
    source = iter(rows)
    running, more = 0, True
    try:
        while True:
            while more and running < concurrency:
                try:
                    row = next(source)
                except StopIteration:
                    more = False
                else:
                    running += 1
                    crew.submit(row, threads=running)
            if not running:
                return
            finished = crew.results.get()
            running -= 1
            if isinstance(finished, _Broken):
                stop.set()
                crew.hand_over(done)
                raise finished.error
            done(finished.row, finished.result)
    finally:
        stop.set()
        crew.dismiss()


@dataclass(frozen=True, slots=True)
class _Finished(Generic[T, R]):
    row: T
    result: R


@dataclass(frozen=True, slots=True)
class _Broken:
    error: BaseException


class _Crew(Generic[T, R]):
    """Threads that take rows from one queue and put results into another."""

    def __init__(self, call: Callable[[T], R]) -> None:
        self._call = call
        self._work: SimpleQueue[tuple[T] | None] = SimpleQueue()
        self._threads = 0
        self.results: SimpleQueue[_Finished[T, R] | _Broken] = SimpleQueue()

    def submit(self, row: T, *, threads: int) -> None:
        """Queue a row, with at least so many threads at work."""
        if self._threads < threads:
            self._threads += 1
            threading.Thread(target=self._labour, name=f"backend-{self._threads}", daemon=True).start()
        self._work.put((row,))

    def hand_over(self, done: Callable[[T, R], None]) -> None:
        """Call `done` for what is finished by now."""
        while not self.results.empty():
            finished = self.results.get()
            if isinstance(finished, _Finished):
                done(finished.row, finished.result)

    def dismiss(self) -> None:
        """Let the threads end, each after the row it is at."""
        while not self._work.empty():
            self._work.get()
        for _ in range(self._threads):
            self._work.put(None)

    def _labour(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                result = self._call(work[0])
            except StoppedError:
                return
            except BaseException as error:  # raised again in the calling thread
                self.results.put(_Broken(error))
            else:
                self.results.put(_Finished(work[0], result))
