"""The leases: whoever takes, and however fast, every record is given out once."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.jobs.leases import Lease, Leases, WorkerSlice, slice_bounds, whose_next


def hours() -> Callable[[], float]:
    """A clock that goes on by an hour each time it is looked at: whoever has not just taken something stands still."""
    return functools.partial(next, itertools.count(0.0, 3600.0))


def open_leases(
    records: int,
    *,
    workers: int,
    alone: int = 0,
    groups: list[int] | None = None,
    clock: Callable[[], float] = time.monotonic,
    keep_apart: bool = False,
) -> Leases:
    """The last `alone` records are to run alone."""
    return Leases(
        np.arange(records - alone),
        alone=range(records - alone, records),
        workers=workers,
        groups=None if groups is None else np.array(groups, np.uint32),
        clock=clock,
        keep_apart=keep_apart,
    )


def take_all(leases: Leases, takers: list[int], wanted: int) -> list[Lease]:
    """Let the workers of `takers` take in turn, each when it has finished, until nothing is left."""
    taken = []
    for worker in itertools.cycle(takers):
        lease = leases.take(worker, wanted)
        if lease is None:
            break
        taken.append(lease)
        leases.finish(lease.fence, lease.records.tolist())
    return taken


def spans(taken: list[Lease]) -> list[tuple[int, int]]:
    return [(int(lease.records[0]), int(lease.records[-1]) + 1) for lease in taken]


@settings(max_examples=50)
@given(st.integers(0, 2000), st.integers(1, 100))
def test_slices_cover_all_and_differ_by_one_at_most(records: int, workers: int) -> None:
    bounds = slice_bounds(records, workers)
    assert len(bounds) == workers
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(records))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_the_slices_of_103_records_for_4_workers() -> None:
    assert slice_bounds(103, 4) == [(0, 26), (26, 52), (52, 78), (78, 103)]


@settings(max_examples=40)
@given(
    records=st.integers(0, 60),
    workers=st.integers(1, 5),
    alone=st.integers(0, 5),
    wanted=st.integers(1, 20),
    takers=st.lists(st.integers(0, 4), min_size=1, max_size=8),
)
def test_every_record_is_given_out_once_at_any_speed(
    records: int, workers: int, alone: int, wanted: int, takers: list[int]
) -> None:
    alone = min(alone, records)
    leases = open_leases(records, workers=workers, alone=alone, clock=hours())
    taken = take_all(leases, [taker % workers for taker in takers], wanted)
    assert Counter(record for lease in taken for record in lease.records.tolist()) == Counter(range(records))
    assert leases.is_over
    assert [span for span, lease in zip(spans(taken), taken, strict=True) if lease.alone] == [
        (record, record + 1) for record in range(records - alone, records)
    ]
    assert all(len(lease.records) <= wanted for lease in taken)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    workers=st.integers(1, 4),
    wanted=st.integers(1, 6),
    takers=st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
def test_groups_are_parted_only_where_a_slice_ends(
    sizes: list[int], workers: int, wanted: int, takers: list[int]
) -> None:
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    leases = open_leases(len(groups), workers=workers, groups=groups, clock=hours())
    taken = spans(take_all(leases, [taker % workers for taker in takers], wanted))
    assert Counter(record for start, stop in taken for record in range(start, stop)) == Counter(range(len(groups)))
    slice_ends = {stop for _, stop in slice_bounds(len(groups), workers)}
    for _, stop in taken:
        assert stop in slice_ends or groups[stop - 1] != groups[stop]


def test_a_worker_alone_takes_its_own_slice_first_then_from_the_fullest() -> None:
    leases = open_leases(90, workers=3, clock=hours())
    leases.take(1, 10)
    starts = [start for start, _ in spans(take_all(leases, [0], 10))]
    assert starts[:3] == [0, 10, 20]
    assert starts[3] == 60  # of worker 2, who has 30 left; worker 1 has 20


def test_the_end_is_given_out_in_small_pieces() -> None:
    taken = take_all(open_leases(16, workers=2, clock=hours()), [0, 1], 1000)
    assert [len(lease.records) for lease in taken] == [4, 3, 2, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("taker", [0, 2])
def test_a_small_file_is_divided_evenly_whoever_is_first(taker: int) -> None:
    leases = open_leases(11, workers=4)
    assert sum(len(lease.records) for lease in take_all(leases, [taker], 16)) == 3
    assert leases.has_for((taker + 1) % 4)
    assert not leases.has_for(taker)
    leases.give_up(3)  # it cannot work: its two are for whoever asks
    assert leases.has_for(taker)
    assert spans(take_all(leases, [taker], 16)) == [(9, 10), (10, 11)]


def test_no_worker_does_more_than_its_slice_where_that_was_asked_for() -> None:
    leases = open_leases(100, workers=2, clock=hours(), keep_apart=True)
    assert sum(len(lease.records) for lease in take_all(leases, [1], 7)) == 50
    assert not leases.has_for(1)
    leases.give_up(0)
    assert sum(len(lease.records) for lease in take_all(leases, [1], 7)) == 50


def test_what_comes_with_an_old_number_does_not_count() -> None:
    leases = open_leases(4, workers=1)
    first = leases.take(0, 2)
    assert first
    assert leases.finish(first.fence, [0, 3]) == [True, False], "of which one was not given to it"
    assert leases.finish(first.fence, [0]) == [False], "a second time"
    [revoked] = leases.revoke(0)
    assert revoked.left == {1}
    assert leases.finish(first.fence, [1]) == [False]
    leases.give_back(revoked.left)
    again = leases.take(0, 2)
    assert again
    assert again.records.tolist() == [1]
    assert again.fence > first.fence
    assert leases.finish(again.fence, [1]) == [True]


def test_a_record_runs_alone_in_a_worker_that_holds_nothing() -> None:
    leases = open_leases(3, workers=1, alone=1)
    held = leases.take(0, 9)
    other = leases.take(0, 9)
    assert held
    assert other
    assert leases.take(0, 9) is None
    for lease in (held, other):
        leases.finish(lease.fence, lease.records.tolist())
    alone = leases.take(0, 9)
    assert alone
    assert (alone.alone, alone.records.tolist()) == (True, [2])


def test_a_lease_holds_no_more_than_fits() -> None:
    leases = Leases(np.arange(100), workers=1, fitting=lambda records: min(len(records), 3))
    assert [len(lease.records) for lease in take_all(leases, [0], 50)][:3] == [3, 3, 3]
    one = Leases(np.arange(5), workers=1, fitting=lambda records: 0)
    assert [len(lease.records) for lease in take_all(one, [0], 50)] == [1] * 5


def test_who_is_helped() -> None:
    """At 100 seconds, the first having begun at 50: a worker with nothing left looks at one other."""

    def is_helped(other: WorkerSlice, **options: bool) -> bool:
        return whose_next([WorkerSlice(0, 50.0), other], 0, now=100.0, begun=50.0, **options) == 1

    assert is_helped(WorkerSlice(9, 99.0)), "much is left"
    assert not is_helped(WorkerSlice(8, 99.0)), "it will have done the rest before anybody else could"
    assert is_helped(WorkerSlice(8, 89.0)), "it does not move"
    assert not is_helped(WorkerSlice(1000, None)), "it is still loading its model"
    assert is_helped(WorkerSlice(1, 99.0, given_up=True))
    assert is_helped(WorkerSlice(1, None, given_up=True), keep_apart=True)
    assert not is_helped(WorkerSlice(1000, 0.0), keep_apart=True)
    assert not is_helped(WorkerSlice(0, 0.0, given_up=True))
    assert whose_next([WorkerSlice(0, 50.0), WorkerSlice(5, None)], 0, now=110.0, begun=50.0) == 1, (
        "nobody waits for ever"
    )
    assert whose_next([WorkerSlice(1, None), WorkerSlice(500, 99.0)], 0, now=100.0, begun=100.0) == 0, "its own first"
