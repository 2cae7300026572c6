"""What the coordinator and a worker tell each other, over any transport."""

from __future__ import annotations

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
    """For each record the values of `index.MEASURES`."""
    payload: bytes


class Alive(NamedTuple):
    """From a worker that makes progress."""


class GaveUp(NamedTuple):
    """From a worker that cannot work."""

    reason: str


ToWorker = Load | Records | Rest | Stop
FromWorker = Ask | Idle | Finished | Alive | GaveUp
