"""The board: whoever takes, and however fast, every place is given out once."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.jobs.board import Board, Lease
from parallelmind.jobs.sharing import Share, slice_bounds, whose_next


def hours() -> Callable[[], float]:
    """A clock that goes on by an hour each time it is looked at: whoever has not just taken something stands still."""
    return functools.partial(next, itertools.count(0.0, 3600.0))


def open_board(
    folder: Path,
    records: int,
    *,
    workers: int,
    alone: int = 0,
    groups: list[int] | None = None,
    clock: Callable[[], float] = time.time,
    keep_apart: bool = False,
) -> Board:
    board = Board(folder, clock=clock)
    board.begin("run", b"job", records, keep_apart=keep_apart)
    board.open_round(
        1,
        np.arange(records),
        np.ones(records),
        workers=workers,
        alone=alone,
        groups=None if groups is None else np.array(groups, np.int64),
    )
    return board


def take_all(board: Board, takers: list[int], wanted: int) -> list[tuple[int, Lease]]:
    """Let the workers of `takers` take in turn until nothing is left."""
    leases = []
    for worker in itertools.cycle(takers):
        lease = board.take("run", worker, wanted)
        if lease is None:
            break
        leases.append((worker, lease))
    return leases


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
def test_every_place_is_given_out_once_at_any_speed(
    records: int, workers: int, alone: int, wanted: int, takers: list[int]
) -> None:
    alone = min(alone, records)
    with TemporaryDirectory() as folder:
        board = open_board(Path(folder), records, workers=workers, alone=alone, clock=hours())
        leases = take_all(board, [taker % workers for taker in takers], wanted)
        given_out = Counter(record for _, lease in leases for record in board.listed(lease)["record"].tolist())
        assert given_out == Counter(range(records))
        single = [lease for _, lease in leases if lease.alone]
        assert [(lease.start, lease.stop) for lease in single] == [
            (place, place + 1) for place in range(records - alone, records)
        ]
        assert all(lease.stop - lease.start <= wanted for _, lease in leases)


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
    with TemporaryDirectory() as folder:
        board = open_board(Path(folder), len(groups), workers=workers, groups=groups, clock=hours())
        leases = take_all(board, [taker % workers for taker in takers], wanted)
    assert Counter(place for _, lease in leases for place in range(lease.start, lease.stop)) == Counter(
        range(len(groups))
    )
    slice_ends = {stop for _, stop in slice_bounds(len(groups), workers)}
    for _, lease in leases:
        assert lease.stop in slice_ends or groups[lease.stop - 1] != groups[lease.stop]


def test_a_worker_alone_takes_its_own_slice_first_then_from_the_fullest(tmp_path: Path) -> None:
    board = open_board(tmp_path, 90, workers=3, clock=hours())
    board.take("run", 1, 10)
    taken = [lease for _, lease in take_all(board, [0], 10)]
    assert [lease.start for lease in taken[:3]] == [0, 10, 20]
    assert taken[3].start == 60  # of worker 2, who has 30 left; worker 1 has 20


def test_the_end_is_given_out_in_small_pieces(tmp_path: Path) -> None:
    board = open_board(tmp_path, 16, workers=2, clock=hours())
    sizes = [lease.stop - lease.start for _, lease in take_all(board, [0, 1], 1000)]
    assert sizes == [4, 3, 2, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("taker", [0, 2])
def test_a_small_file_is_divided_evenly_whoever_is_first(tmp_path: Path, taker: int) -> None:
    board = open_board(tmp_path, 11, workers=4)
    mine = [lease for _, lease in take_all(board, [taker], 16)]
    assert sum(lease.stop - lease.start for lease in mine) == 3
    assert board.has_for((taker + 1) % 4)
    assert not board.has_for(taker)
    board.give_up([3])  # it cannot work: its two are for whoever asks
    assert board.has_for(taker)
    others = [lease for _, lease in take_all(board, [taker], 16)]
    assert [lease.start for lease in others] == [9, 10]


def test_no_worker_does_more_than_its_slice_where_that_was_asked_for(tmp_path: Path) -> None:
    board = open_board(tmp_path, 100, workers=2, clock=hours(), keep_apart=True)
    assert sum(lease.stop - lease.start for _, lease in take_all(board, [1], 7)) == 50
    assert not board.has_for(1)
    board.give_up([0])
    assert sum(lease.stop - lease.start for _, lease in take_all(board, [1], 7)) == 50


def test_who_is_helped() -> None:
    """At 100 seconds, the first having begun at 50: a worker with nothing left looks at one other."""

    def is_helped(other: Share, **options: bool) -> bool:
        return whose_next([Share(0, 50.0), other], 0, now=100.0, begun=50.0, **options) == 1

    assert is_helped(Share(9, 99.0)), "much is left"
    assert not is_helped(Share(8, 99.0)), "it will have done the rest before anybody else could"
    assert is_helped(Share(8, 89.0)), "it does not move"
    assert not is_helped(Share(1000, None)), "it is still loading its model"
    assert is_helped(Share(1, 99.0, given_up=True))
    assert is_helped(Share(1, None, given_up=True), keep_apart=True)
    assert not is_helped(Share(1000, 0.0), keep_apart=True)
    assert not is_helped(Share(0, 0.0, given_up=True))
    assert whose_next([Share(0, 50.0), Share(5, None)], 0, now=110.0, begun=50.0) == 1, "nobody waits for ever"
    assert whose_next([Share(1, None), Share(500, 99.0)], 0, now=100.0, begun=100.0) == 0, "its own first"


def test_nothing_is_given_to_another_run_or_when_it_is_over(tmp_path: Path) -> None:
    board = open_board(tmp_path, 5, workers=1)
    assert board.take("another", 0, 1) is None
    assert board.take("run", 0, 1) == Lease(round=1, start=0, stop=1, alone=False)
    board.close("failed", "disk full")
    assert board.take("run", 0, 1) is None
    view = Board(tmp_path).read()
    assert (view.run, view.state, view.message, view.left, view.digest) == ("run", "failed", "disk full", 4, b"job")
