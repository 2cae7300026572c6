"""What the coordinator and a worker tell each other, over any transport."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple


class Load(NamedTuple):
    """To a worker: there is work, so load what it takes."""


class Records(NamedTuple):
    """To a worker: a lease. All lists have one entry for each record."""

    fence: int
    alone: bool
    indexes: list[int]
    numbers: list[int]
    contents: list[bytes]
    sizes: list[int]
    keys: list[bytes]


class Rest(NamedTuple):
    """To a worker that has asked: nothing for now, so bring to an end what was taken."""


class Stop(NamedTuple):
    """To a worker: the run is over."""


class Ask(NamedTuple):
    """From a worker that is about to run out of records."""

    wanted: int


class Loaded(NamedTuple):
    """From a worker: it has loaded what it takes."""

    host: str
    files: dict[str, str]
    """What `Task.files` says now, on the worker's machine."""


class Idle(NamedTuple):
    """From a worker that has loaded and holds no records: it waits for some."""

    wanted: int


class Finished(NamedTuple):
    """From a worker: results of one lease."""

    fence: int
    records: list[int]
    sizes: list[int]
    """Bytes of each record's rows in `payload`."""
    measures: list[tuple[Any, ...]]
    """For each record the values of `results.MEASURES`."""
    payload: bytes

    def chosen(self, counts: list[bool]) -> Finished:
        """The results that count."""
        ends = list(itertools.accumulate(self.sizes))
        payloads = (self.payload[end - size : end] for size, end in zip(self.sizes, ends, strict=True))
        return Finished(
            self.fence,
            list(itertools.compress(self.records, counts)),
            list(itertools.compress(self.sizes, counts)),
            list(itertools.compress(self.measures, counts)),
            b"".join(itertools.compress(payloads, counts)),
        )


class Alive(NamedTuple):
    """From a worker that makes progress."""


class Beat(NamedTuple):
    """From a worker now and then, whether it makes progress or not: its process runs."""


class GaveUp(NamedTuple):
    """From a worker that cannot work."""

    reason: str


ToWorker = Load | Records | Rest | Stop
FromWorker = Ask | Loaded | Idle | Finished | Alive | Beat | GaveUp
