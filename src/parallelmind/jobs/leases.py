"""Who works on which records: leases, given out from the slices of the workers.

Each worker has a slice of the work and takes small leases from its front. The slices differ by one record at most, so
that a small file is divided evenly, even if one worker has loaded its model before the others. When its slice is used
up a worker helps others where that helps more than it disturbs (`whose_next`): a slow worker with much left, and one
that does not move, hold nobody up. A lease has a number of its own, its fence: what comes with the number of a lease
that was revoked is dropped.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.options import LATE_SECONDS

_GROUP_SEARCH = 256
_FEW = 8
"""So many records or fewer are left to the worker they belong to."""
_STALLED_SECONDS = 10.0
"""A worker that has taken nothing for so long is helped with its last records too."""


@dataclass(slots=True)
class Lease:
    """Records that one worker works on."""

    fence: int
    rank: int
    records: NDArray[np.int64]
    alone: bool
    """The record is to be run with nothing else, since a worker died with it."""
    left: set[int]
    """Records without a result."""


class Leases:
    """Gives out records.

    Args:
        records: in the order of work.
        alone: further records, each to be run with nothing else.
        groups: for each of `records` its group; equal neighbours stay in one lease where that is possible.
        fitting: how many of some records are not too much for one lease.
        keep_apart: each worker does no more than its own slice, see `whose_next`.
        late: seconds after which a worker that has taken nothing is not waited for, see `whose_next`.
        last_fence: the number of the last lease that was given out before.
        clock: seconds.
    """

    def __init__(
        self,
        records: NDArray[np.int64],
        *,
        workers: int,
        alone: Iterable[int] = (),
        groups: NDArray[np.uint32] | None = None,
        fitting: Callable[[NDArray[np.int64]], int] = len,
        keep_apart: bool = False,
        late: float = LATE_SECONDS,
        last_fence: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._groups = groups
        self._fitting = fitting
        self._keep_apart = keep_apart
        self._late = late
        self._clock = clock
        self._slices = [list(bounds) for bounds in slice_bounds(len(records), workers)]
        self._taken_at: list[float | None] = [None] * workers
        self._begun = clock()
        self._given_up: set[int] = set()
        self._given_back: deque[int] = deque()
        self._alone = deque(alone)
        self.last_fence = last_fence
        self.held: dict[int, Lease] = {}
        """The leases that are out, by fence."""

    @property
    def left(self) -> int:
        """Records that nobody has at present."""
        return self._together_left() + len(self._alone)

    @property
    def is_over(self) -> bool:
        """Whether every record was given out and brought to its end."""
        return not self.held and not self.left

    def has_for(self, rank: int) -> bool:
        """Whether this worker, which holds nothing, could take something now."""
        return bool(self._given_back) or self._whose(rank) is not None or bool(self._alone)

    def held_by(self, rank: int) -> list[Lease]:
        return [lease for lease in self.held.values() if lease.rank == rank]

    def take(self, rank: int, wanted: int) -> Lease | None:
        """Up to `wanted` records; None if there is none for this worker at present.

        Near the end less is given than asked for, so that the workers end together. A record that must run alone is
        given only to a worker that holds nothing.
        """
        fair = max(1, self._together_left() // (2 * len(self._slices)))
        if self._given_back:
            records = [self._given_back.popleft() for _ in range(min(wanted, fair, len(self._given_back)))]
            return self._lease(rank, np.array(records, np.int64))
        if (number := self._whose(rank)) is not None:
            start, limit = self._slices[number]
            stop = self._to_group_end(min(start + min(wanted, fair), limit), limit)
            stop = start + max(1, self._fitting(self._records[start:stop]))
            self._slices[number][0] = stop
            now = self._clock()
            if all(at is None for at in self._taken_at):
                self._begun = now
            self._taken_at[rank] = now
            return self._lease(rank, self._records[start:stop])
        if self._alone and not self.held_by(rank):
            return self._lease(rank, np.array([self._alone.popleft()], np.int64), alone=True)
        return None

    def finish(self, fence: int, records: Sequence[int]) -> list[bool]:
        """Results of these records came under this number: whether each counts."""
        lease = self.held.get(fence)
        if lease is None:
            return [False] * len(records)
        if lease.left.issuperset(records) and len(set(records)) == len(records):
            counts = [True] * len(records)
            lease.left.difference_update(records)
        else:
            counts = []
            for record in records:
                counts.append(record in lease.left)
                lease.left.discard(record)
        if not lease.left:
            del self.held[fence]
        return counts

    def revoke(self, rank: int) -> list[Lease]:
        """Take back what this worker has; what it still sends does not count."""
        revoked = self.held_by(rank)
        for lease in revoked:
            del self.held[lease.fence]
        return revoked

    def give_back(self, records: Iterable[int]) -> None:
        """These records are for any worker."""
        self._given_back.extend(records)

    def isolate(self, record: int) -> None:
        """This record is to be run alone."""
        self._alone.append(record)

    def give_up(self, rank: int) -> None:
        """This worker will not come back: what it had to do is for the others."""
        self._given_up.add(rank)

    def _together_left(self) -> int:
        return sum(stop - start for start, stop in self._slices) + len(self._given_back)

    def _whose(self, rank: int) -> int | None:
        slices = [
            WorkerSlice(stop - start, taken_at, number in self._given_up)
            for number, ((start, stop), taken_at) in enumerate(zip(self._slices, self._taken_at, strict=True))
        ]
        return whose_next(
            slices, rank, now=self._clock(), begun=self._begun, keep_apart=self._keep_apart, late=self._late
        )

    def _lease(self, rank: int, records: NDArray[np.int64], *, alone: bool = False) -> Lease:
        self.last_fence += 1
        lease = Lease(self.last_fence, rank, records, alone, set(records.tolist()))
        self.held[lease.fence] = lease
        return lease

    def _to_group_end(self, stop: int, limit: int) -> int:
        groups = self._groups
        if groups is None or stop >= limit:
            return stop
        ahead = groups[stop : min(stop + _GROUP_SEARCH, limit)] != groups[stop - 1]
        return stop + (int(np.argmax(ahead)) if ahead.any() else len(ahead))


@dataclass(frozen=True, slots=True)
class WorkerSlice:
    """What one worker has left of its slice."""

    left: int
    taken_at: float | None
    """Seconds of the clock when it last took something; None: it has not begun."""
    given_up: bool = False
    """It will not come back."""


def slice_bounds(total: int, workers: int) -> list[tuple[int, int]]:
    """(start, stop) for each worker: every number below `total` once, sizes that differ by one at most."""
    size, larger = divmod(total, workers)
    starts = [worker * size + min(worker, larger) for worker in range(workers + 1)]
    return list(itertools.pairwise(starts))


def whose_next(
    slices: Sequence[WorkerSlice],
    worker: int,
    *,
    now: float,
    begun: float,
    keep_apart: bool = False,
    late: float = LATE_SECONDS,
) -> int | None:
    """The number of the slice that `worker` takes from, None if it has to wait or nothing is left.

    Args:
        now: the clock's seconds.
        begun: when the first of the workers took something; before that, when the work was given out.
        keep_apart: each worker does no more than its own slice, but for those that will not come back.
        late: so long after `begun` a worker that has taken nothing is not waited for.
    """
    if slices[worker].left:
        return worker

    def may_be_helped(one: WorkerSlice) -> bool:
        if not one.left or one.given_up or keep_apart:
            return bool(one.left) and one.given_up
        if one.taken_at is None:
            return abs(now - begun) >= late
        return one.left > _FEW or abs(now - one.taken_at) >= _STALLED_SECONDS

    helped = [number for number, one in enumerate(slices) if may_be_helped(one)]
    return max(helped, key=lambda number: slices[number].left, default=None)
