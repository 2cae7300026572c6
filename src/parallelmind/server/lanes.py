"""Threads for what takes long: parsing, tokenizing and writing of large requests, beside the event loop.

And turns on the loop itself, for what is short but may have to be done for many at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
_HEAVY = 2**16
"""From this many characters on, work does not go before that of others."""


class Lane:
    """One thread that does one job after the other, each client's in their order and one client after the other.

    A job whose future is cancelled before it begins is not done.
    """

    def __init__(self, name: str):
        self._jobs: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, client: str, function: Callable[[], T]) -> Future[T]:
        """Have a function called."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopped:
                future.cancel()
            else:
                self._jobs.setdefault(client, deque()).append((future, function))
                self._changed.notify()
        return future

    def stop(self) -> None:
        """Do no more jobs."""
        with self._changed:
            self._stopped = True
            for jobs in self._jobs.values():
                for future, _ in jobs:
                    future.cancel()
            self._jobs.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            future, function = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, function, job  # what they hold is not needed while this waits

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            while not self._jobs and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            client = next(iter(self._jobs))
            jobs = self._jobs.pop(client)
            job = jobs.popleft()
            if jobs:
                self._jobs[client] = jobs  # behind the others
            return job


class Lanes:
    """A lane for small jobs and one for large ones, so that no small request waits for the text of a large one."""

    def __init__(self) -> None:
        self._light, self._heavy = Lane("parallelmind-light"), Lane("parallelmind-heavy")

    def submit(self, client: str, characters: int, function: Callable[[], T]) -> Future[T]:
        """Have a function called that works on so many characters."""
        return (self._light if characters < _HEAVY else self._heavy).submit(client, function)

    def stop(self) -> None:
        self._light.stop()
        self._heavy.stop()


class Turns:
    """One turn in each round of the event loop, each client's in their order and one client after the other."""

    def __init__(self) -> None:
        self._all = asyncio.Lock()
        self._of_client: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """The block is one turn."""
        # Of each client one waits for all: these are asked in the order in which they came.
        async with self._of_client.setdefault(client, asyncio.Lock()), self._all:
            yield
            await asyncio.sleep(0)
