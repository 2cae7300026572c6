"""Several uses of one engine at a time: streams one inside the other, threads, and requests queued one by one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from parallelmind.engine.request import Event
from parallelmind.errors import RequestError


class Mailbox:
    """The requests of one stream, and the events of theirs that it has not taken yet.

    Whoever runs the engine's next step, in this thread or another, puts them there.
    """

    def __init__(self) -> None:
        self.unfinished: dict[int, int] = {}
        """The answers that are still to come, by the ids that the engine gave the requests."""
        self._index_of: dict[int, int] = {}
        self._events: list[Event] = []

    def __bool__(self) -> bool:
        """Whether there are events or will be."""
        return bool(self.unfinished or self._events)

    def expect(self, request_id: int, index: int, answers: int) -> None:
        """Wait for so many answers of a request, which is the stream's number `index`."""
        self._index_of[request_id] = index
        self.unfinished[request_id] = answers

    def put(self, event: Event) -> None:
        """Take an event of one of its requests."""
        request_id = event.request_index
        self._events.append(dataclasses.replace(event, request_index=self._index_of[request_id]))
        if event.finish_reason is not None:
            self.unfinished[request_id] -= 1
            if not self.unfinished[request_id]:
                del self.unfinished[request_id], self._index_of[request_id]

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class Uses:
    """Lets one thread at a time run the engine, and gives each use of it its own events."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_stepping = False
        self._mailboxes: dict[int, Mailbox] = {}
        self._others: list[Event] = []
        self._left: list[int] = []
        """Requests of streams that were closed in the middle of a step."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the engine for oneself, among all threads; the same thread may have it already."""
        with self._lock:
            if self._is_stepping:
                raise RequestError(
                    "the engine was used in the middle of its own step; a logits_processor must not call the engine "
                    "that calls it."
                )
            yield

    @contextmanager
    def stepping(self, cancel: Callable[[int], None]) -> Iterator[None]:
        """While the engine runs a step; `cancel` ends requests of streams that were closed meanwhile."""
        self._is_stepping = True
        try:
            yield
        finally:
            self._is_stepping = False
            while self._left:
                self._end(self._left.pop(), cancel)

    def expect(self, mailbox: Mailbox, request_id: int, index: int, answers: int) -> None:
        """Have the events of a request go to a mailbox."""
        mailbox.expect(request_id, index, answers)
        self._mailboxes[request_id] = mailbox

    def expect_more(self, request_id: int, answers: int) -> None:
        """A request gets so many further answers; the stream that waits for it, if one does, waits for these, too."""
        if request_id in self._mailboxes:
            self._mailboxes[request_id].unfinished[request_id] += answers

    def deliver(self, events: Iterable[Event]) -> None:
        """Give each event to the stream that waits for it; the others are for `take_others`."""
        for event in events:
            mailbox = self._mailboxes.get(event.request_index)
            if mailbox is None:
                self._others.append(event)
                continue
            mailbox.put(event)
            if event.request_index not in mailbox.unfinished:
                del self._mailboxes[event.request_index]

    def take_others(self) -> list[Event]:
        """The events that no stream waits for."""
        events, self._others = self._others, []
        return events

    def has_others(self) -> bool:
        return bool(self._others)

    def leave(self, mailbox: Mailbox, cancel: Callable[[int], None]) -> None:
        """A stream was closed: end what it still waits for, as nobody will take it."""
        with self._lock:
            for request_id in list(mailbox.unfinished):
                if self._is_stepping:  # the stream was forgotten, and the garbage collector came by
                    self._left.append(request_id)
                else:
                    self._end(request_id, cancel)

    def _end(self, request_id: int, cancel: Callable[[int], None]) -> None:
        cancel(request_id)  # whose last events nobody takes out of the mailbox
        self._mailboxes.pop(request_id, None)

    def clear(self) -> None:
        """Everything that was queued has ended; streams find that their requests are gone."""
        self._mailboxes.clear()
        self._others.clear()
