"""Whose records a worker takes next: its own first, then those of others where that helps more than it disturbs.

Each worker has a slice of the work, and the slices differ by one record at most. A small file is therefore divided
evenly, even if one worker has loaded its model before the others; a slow worker with much left is helped, and so is one
that does not move.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_FEW = 8
"""So many records or fewer are left to the worker they belong to."""
_LATE_SECONDS = 60.0
"""A worker that takes nothing so long after the first one did is not waited for."""
_STALLED_SECONDS = 10.0
"""A worker that has taken nothing for so long is helped with its last records too."""


@dataclass(frozen=True, slots=True)
class Share:
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
    shares: Sequence[Share], worker: int, *, now: float, begun: float, keep_apart: bool = False
) -> int | None:
    """The number of the slice that `worker` takes from, None if it has to wait or nothing is left.

    Args:
        now: the clock's seconds.
        begun: when the first of the workers took something; before that, when the work was given out.
        keep_apart: each worker does no more than its own slice, but for those that will not come back.
    """
    if shares[worker].left:
        return worker

    def may_be_helped(share: Share) -> bool:
        if not share.left or share.given_up or keep_apart:
            return bool(share.left) and share.given_up
        if share.taken_at is None:
            return abs(now - begun) >= _LATE_SECONDS
        return share.left > _FEW or abs(now - share.taken_at) >= _STALLED_SECONDS

    helped = [number for number, share in enumerate(shares) if may_be_helped(share)]
    return max(helped, key=lambda number: shares[number].left, default=None)
