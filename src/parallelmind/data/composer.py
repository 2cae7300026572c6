"""Micro-batches of a number of tokens: which rows fill one together, and how they stand in its sequences.

Rows of many records stand one behind the other in a sequence, where none sees another, so that nearly all of what is
computed are tokens of the data, and a micro-batch never has more of them than it is told.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Sequence

from parallelmind.data.batches import BatchLimits, RowPlan
from parallelmind.errors import DataError

_BATCHES_TOGETHER = 64
"""Micro-batches that are filled from the same rows: the last ones of them find little that fits."""
_PADDING = 0.02
"""The share of padding for which a micro-batch may have more, and shorter, sequences."""


def fitting(row: RowPlan, limits: BatchLimits) -> list[RowPlan]:
    """A row as parts that fit into a micro-batch, each with main and with the numbers of its branches.

    Raises:
        DataError: a branch does not fit beside its main; with `whole_rows`, the row does not.
    """
    parts: list[RowPlan] = []
    while row.tokens > limits.size:
        room = limits.size - row.main_tokens
        place = 0
        while place < len(row.branches) and row.branches[place].tokens <= room:
            room -= row.branches[place].tokens
            place += 1
        if limits.whole_rows or place == 0:
            raise DataError(_too_large(row, limits))
        part, row = row.cut(place)
        parts.append(part)
    return [*parts, row]


def filled(rows: Sequence[RowPlan], limits: BatchLimits, rng: random.Random) -> list[RowPlan]:
    """The rows in an order that fills micro-batches well, these in a random order.

    The rows of a micro-batch follow one another; each row is found a place among those of the nearest ones, the largest
    first, where it leaves the least room.
    """
    bins: list[list[RowPlan]] = []
    window: list[RowPlan] = []
    tokens = 0
    for row in rows:
        window.append(row)
        tokens += row.tokens
        if tokens >= _BATCHES_TOGETHER * limits.size:
            bins += _best_fit(window, limits.size)
            window, tokens = [], 0
    bins += _best_fit(window, limits.size)
    rng.shuffle(bins)
    return [row for one in bins for row in one]


def sequences(lengths: Sequence[int], limits: BatchLimits) -> list[list[int]]:
    """The rows of a micro-batch, by their places in it, as sequences of about the same length.

    As many sequences as leave little padding: attention over a sequence that is half as long takes a quarter of the
    time where it cannot pass over what is not seen.
    """
    total = sum(lengths)
    count = min(len(lengths), limits.size // max(lengths))
    while count > 1:
        found = _even(lengths, count)
        longest = max(sum(lengths[place] for place in one) for one in found)
        computed = count * limits.width(longest)
        if computed <= limits.size and computed - total <= _PADDING * computed:
            return found
        count = count * 4 // 5
    return [list(range(len(lengths)))]


def _even(lengths: Sequence[int], count: int) -> list[list[int]]:
    """So many groups of about the same length: each row, the longest first, goes to the shortest group so far."""
    groups: list[list[int]] = [[] for _ in range(count)]
    sizes = [(0, group) for group in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        size, group = heapq.heappop(sizes)
        groups[group].append(place)
        heapq.heappush(sizes, (size + lengths[place], group))
    return groups


def _best_fit(rows: Sequence[RowPlan], size: int) -> list[list[RowPlan]]:
    bins: list[list[RowPlan]] = []
    rooms: list[tuple[int, int]] = []
    """The room in each bin and its place among them, in ascending order."""
    for row in sorted(rows, key=lambda row: -row.tokens):
        at = bisect.bisect_left(rooms, (row.tokens, 0))
        if at == len(rooms):
            room, place = size, len(bins)
            bins.append([])
        else:
            room, place = rooms.pop(at)
        bins[place].append(row)
        bisect.insort(rooms, (room - row.tokens, place))
    return bins


def _too_large(row: RowPlan, limits: BatchLimits) -> str:
    flag = f"--max_tokens_per_batch {limits.size}"
    beside = f" beside a main of {row.main_tokens}" if row.main_tokens else ""
    if limits.whole_rows:
        return (
            f"{row.sources[0]}: a row of {len(row.branches)} branches, which see one another, has {row.tokens} tokens "
            f"and does not fit into {flag}; raise it, or lower --branches_per_sample; --max_total_tokens {limits.size} "
            "makes smaller rows, and drops and counts branches that fit in none."
        )
    branch = row.branches[0]
    where = f'{row.sources[0]}: "branches"[{branch.number - 1}]' if row.main_tokens else row.sources[0]
    return (
        f"{where} has {branch.tokens} tokens and does not fit{beside} into {flag}; raise it to at least "
        f"{row.main_tokens + branch.tokens}, or lower --max_seq_len, which cuts branches; --max_total_tokens "
        f"{limits.size} drops and counts such branches."
    )
