"""What every transport does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from parallelmind.jobs.messages import FromWorker, ToWorker
from parallelmind.jobs.quarantine import Death


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a worker."""

    rank: int
    message: FromWorker
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Ended:
    """The process of a worker is gone."""

    rank: int
    death: Death
    for_good: bool = False
    """It cannot be started again."""


Inbox = SimpleQueue[Received | Ended]
"""Where a transport puts what happens, whichever thread it happens in."""


class Transport(Protocol):
    """Starts, reaches and ends the workers of a run. No call waits for a worker.

    What happens comes to the inbox that the transport was made with: of each worker its messages in their order, then
    that it ended.
    """

    def start(self, rank: int) -> None:
        """Start the worker of this rank, which has none at present."""

    def send(self, rank: int, message: ToWorker) -> None:
        """Bring a message to the worker, if it still lives."""

    def kill(self, rank: int) -> None:
        """End the worker at once; that it ended comes to the inbox."""

    def check(self) -> None:
        """Called now and then: raises JobError if the run cannot go on."""

    def close(self, error: str | None) -> None:
        """The run is over, for this reason if it failed: end all workers, which were told to stop if it did not."""


MakeTransport = Callable[[Inbox], Transport]
