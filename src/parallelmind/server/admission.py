"""Who may come in: places in the queue and memory for bodies, in fair shares between clients."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque

from parallelmind.server.problems import ApiError

_MAX_RETRY_AFTER = 60
_BODIES = 16
"""Bodies of the largest size that are held at a time; half of them at most by one client."""
_SMALL = 2**16
"""Bytes of a body that are always taken: with as many requests as there are places they are few."""


class Ticket:
    """What one request holds of the server until its branches have ended: their places, and memory for its body."""

    def __init__(self, admission: Admission, client: str):
        self.client = client
        self.branches = 0
        self.body_bytes = 0
        self.counted_bytes = 0
        self.is_running = False
        """Whether the engine has the branches, each of which gives its place back when it ends."""
        self.is_over = False
        """The client is gone, or has its answer: what a thread still does for the request takes no places any more."""
        self._admission = admission

    def ask(self, branches: int) -> None:
        """Have places for so many branches instead of those it has.

        Raises:
            ApiError: 429, they are not free.
        """
        self._admission.take(self, branches)

    def hold(self, count: int) -> None:
        """Have memory for so many more bytes of the body.

        Raises:
            ApiError: 429, it is not free.
        """
        self._admission.hold(self, count)

    def leave(self) -> None:
        """Give back what the request does not need any more."""
        self._admission.let_go(self)


class Admission:
    """Places for branches that run and wait, and memory for the bodies of their requests.

    A client may have all places while nobody else wants them. Where they are full, everyone still gets an equal share:
    who has less than that is let in, over the number, and who has more is refused until it has less.

    Args:
        places: branches that run and wait together.
        body_bytes: the largest body.
    """

    def __init__(self, places: int, body_bytes: int):
        self.places = places
        self._body_bytes = body_bytes * _BODIES
        self._branches: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._finished_at: deque[float] = deque(maxlen=64)
        self._lock = threading.Lock()

    @property
    def branches(self) -> int:
        """Branches that have a place."""
        return self._branches.total()

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that are held."""
        return self._bodies.total()

    def ticket(self, client: str) -> Ticket:
        """For a new request. It has no place yet: a body that never comes to its end must not keep one.

        Raises:
            ApiError: 429, there is no place.
        """
        ticket = Ticket(self, client)
        self.take(ticket, 1)
        self.take(ticket, 0)
        return ticket

    def take(self, ticket: Ticket, branches: int) -> None:
        """See `Ticket.ask`."""
        with self._lock:
            if ticket.is_over:
                return
            others = self.branches - ticket.branches
            own = self._branches[ticket.client] - ticket.branches
            excess = others + branches - self.places
            if excess > 0 and others and not self._has_share(ticket.client, own, others, branches):
                raise ApiError(
                    429,
                    f"the queue is full: {others} branches are running and waiting, {own} of them yours; "
                    "try again later",
                    code="queue_full",
                    headers={"Retry-After": str(self._retry_after(excess)), "Connection": "close"},
                )
            self._branches[ticket.client] += branches - ticket.branches
            ticket.branches = branches
            self._forget(ticket.client)

    def hold(self, ticket: Ticket, count: int) -> None:
        """See `Ticket.hold`."""
        with self._lock:
            ticket.body_bytes += count
            counted = max(0, ticket.body_bytes - _SMALL)
            own, held = self._bodies[ticket.client] - ticket.counted_bytes, self.body_bytes - ticket.counted_bytes
            if counted and (own + counted > self._body_bytes // 2 or held + counted > self._body_bytes):
                raise ApiError(
                    429,
                    f"{held} bytes of requests are held, {own} of them yours; try again later, or send fewer at a time",
                    code="queue_full",
                    headers={"Retry-After": "1", "Connection": "close"},
                )
            self._bodies[ticket.client] += counted - ticket.counted_bytes
            ticket.counted_bytes = counted

    def let_go(self, ticket: Ticket) -> None:
        """See `Ticket.leave`."""
        with self._lock:
            ticket.is_over = True
            self._bodies[ticket.client] -= ticket.counted_bytes
            ticket.counted_bytes = 0
            if not ticket.is_running:
                self._branches[ticket.client] -= ticket.branches
                ticket.branches = 0
            self._forget(ticket.client)

    def branch_ended(self, ticket: Ticket) -> None:
        """A branch that the engine had has ended."""
        with self._lock:
            self._branches[ticket.client] -= 1
            ticket.branches -= 1
            self._finished_at.append(time.monotonic())
            self._forget(ticket.client)

    def _has_share(self, client: str, own: int, others: int, branches: int) -> bool:
        """Whether a client has less than its share of what is full, and the excess stays below as much again."""
        clients = len(self._branches.keys() | {client})
        fits = not own or own + branches <= self.places // clients
        return fits and clients > 1 and others <= 2 * self.places

    def _forget(self, client: str) -> None:
        for counter in (self._branches, self._bodies):
            if not counter[client]:
                del counter[client]

    def _retry_after(self, excess: int) -> int:
        """Seconds until so many branches will have ended, at the present rate."""
        times = self._finished_at
        if len(times) < 2:
            return 1
        rate = (len(times) - 1) / max(1e-3, time.monotonic() - times[0])
        return max(1, min(_MAX_RETRY_AFTER, math.ceil(excess / rate)))
