"""Hands what the branches of one request generate from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

from parallelmind.engine.request import BranchResult, Event, TokenLogprob
from parallelmind.server.admission import Ticket

_LOGPROB_SIZE = 64
"""Characters that a token's log-probability counts for."""


@dataclass(slots=True)
class Delta:
    """The text and tokens that one branch generated since the reader last looked."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    result: BranchResult | None = None
    """Set once, with the branch's last text."""


class OutputCollector:
    """The deltas of one request's branches, merged until they are read, so that a slow reader costs no more than text.

    `put` and `fail` are for the engine's thread, everything else for the event loop.

    Args:
        branches: how many the request has.
        streamed: wake the reader at every delta rather than when the last branch is done.
        max_unread: characters that may wait for the reader.
        ticket: the places that the branches have.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        branches: int,
        *,
        streamed: bool,
        max_unread: int,
        ticket: Ticket | None = None,
    ):
        self.loop = loop
        self.branches = branches
        self.streamed = streamed
        self.ticket = ticket
        self.results: dict[int, BranchResult] = {}
        self.created = time.perf_counter()
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.abandoned = False
        """Whether the reader is gone."""
        self.overflowed = False
        """The reader was so far behind that the request is cancelled."""
        self.generated_tokens = 0
        self._max_unread = max_unread
        self._unread = 0
        self._deltas: dict[int, Delta] = {}
        self._lock = threading.Lock()
        self._woken = asyncio.Event()

    @property
    def finished(self) -> bool:
        return len(self.results) == self.branches

    def put(self, event: Event) -> bool:
        """Take an event of the engine; returns whether the reader should be woken."""
        with self._lock:
            now = time.perf_counter()
            if event.token_ids:
                self.generated_tokens += len(event.token_ids)
                if self.first_token_at is None:
                    self.first_token_at = now
            if event.result is not None:
                self.results[event.branch_index] = event.result
                if self.finished:
                    self.finished_at = now
            if not self.streamed:
                return self.finished
            delta = self._deltas.setdefault(event.branch_index, Delta())
            delta.text += event.text
            delta.tokens += len(event.token_ids)
            delta.logprobs += event.logprobs
            delta.result = event.result
            self._unread += len(event.text) + sum(_LOGPROB_SIZE * (1 + len(one.top)) for one in event.logprobs)
            self.overflowed |= self._unread > self._max_unread
            return True

    def fail(self, result: BranchResult) -> None:
        """End all branches that have not finished with this result."""
        for index in range(self.branches):
            if index not in self.results:
                event = Event(request_index=0, branch_index=index, finish_reason=result.finish_reason, result=result)
                self.put(event)

    def wake(self) -> None:
        self._woken.set()

    def abandon(self) -> None:
        self.abandoned = True
        self._woken.set()

    async def deltas(self, timeout: float) -> dict[int, Delta]:
        """What the branches generated since the last call; empty after `timeout` seconds without any, or abandoned."""
        if not self._woken.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._woken.wait()
            except TimeoutError:
                return {}
        self._woken.clear()
        with self._lock:
            deltas, self._deltas, self._unread = self._deltas, {}, 0
        return deltas

    async def all_results(self) -> list[BranchResult]:
        """The results of all branches, in order, once they are there; empty if abandoned."""
        while not self.finished and not self.abandoned:
            await self._woken.wait()
            self._woken.clear()
        return [self.results[index] for index in range(self.branches)] if self.finished else []
