"""What the kernels of a step do: the tree of what its tokens read, cut into items.

Texts that begin alike share pages. The spans of a step, sorted by their pages, are leaves of a tree whose inner nodes
are the stretches of pages that several of them read; each stretch is read once for all tokens below it. A stretch is
cut by tokens into what one program holds in registers, and by keys so that all of the GPU has work.

Shapes: T tokens of the forward, I items, S slots (one for each token of each item).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from parallelmind.columnar import Reach
from parallelmind.engine.readings import Span
from parallelmind.engine.step import Step
from parallelmind.engine.tree import Run

Ints = NDArray[np.int32]

_LEAST_KEYS = 256
"""An item is not cut into pieces of fewer keys: merging them would cost more than it brings."""
_KEY_STEP = 64
_ANY_BRANCH = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Items:
    """The work of one step in the layers of one reach.

    Shapes: `narrow`, `wide` [I, 8], see `kernels.read_items`; `pages` [*]; `ends` [T] and `slots` [S], see
    `kernels.merge_parts`.
    """

    narrow: Ints
    """Items of as few rows as the GPU's matrix instructions take."""
    wide: Ints
    pages: Ints
    ends: Ints
    slots: Ints


@dataclass(frozen=True, slots=True)
class Shape:
    """What items depend on besides the texts.

    Args:
        narrow_tokens: the tokens of an item of the narrow kind, at most.
        num_heads: key/value heads.
        num_programs: as many programs are wanted at least.
    """

    narrow_tokens: int
    wide_tokens: int
    num_heads: int
    num_programs: int


def items_of(step: Step, reach: Reach, shape: Shape) -> Items:
    """Cut what the tokens of a step read in layers of this reach."""
    table = _PageTable()
    readings = np.array(list(_readings(step, table)), dtype=np.int64).reshape(-1, 6)
    times = step.times
    count = readings[:, 4] - readings[:, 3]
    tokens = np.where(count <= shape.narrow_tokens, shape.narrow_tokens, shape.wide_tokens)
    number = -(-count // tokens)
    of = np.repeat(np.arange(len(readings)), number)
    page, keys, first_time, start, end, branch = readings[of].T
    within = _counted(number)
    size = tokens[of]
    token = start + within * size
    num_tokens = np.minimum(size, end - token)
    latest, earliest = _extremes(times, token, num_tokens)
    # Nobody sees what is later than all tokens, or out of the reach of all.
    behind = np.minimum(keys, latest - first_time + 1)
    low = np.zeros_like(page)
    if not reach.is_full:
        low = np.maximum(0, reach.earliest(torch.from_numpy(earliest)).numpy() - first_time)
    keys = np.maximum(0, behind - low)
    per_item = max(_LEAST_KEYS, _up(int(keys.sum()) * shape.num_heads // shape.num_programs, _KEY_STEP))
    pieces = -(-keys // per_item)
    piece = _counted(pieces)
    of = np.repeat(np.arange(len(page)), pieces)
    low, page, first_time, token, num_tokens, branch, size, keys = (
        array[of] for array in (low, page, first_time, token, num_tokens, branch, size, keys)
    )
    length = np.minimum(per_item, keys - piece * per_item)
    low = low + piece * per_item
    slot = np.cumsum(num_tokens) - num_tokens
    fields = (
        page + low // step.store.page_tokens,
        low % step.store.page_tokens,
        length,
        first_time + low,
        token,
        num_tokens,
        slot,
        branch,
    )
    items = np.stack(fields, 1).astype(np.int32)
    is_narrow = size == shape.narrow_tokens
    token_of_slot = np.repeat(token, num_tokens) + _counted(num_tokens)
    return Items(
        narrow=items[is_narrow],
        wide=items[~is_narrow],
        pages=table.pages(),
        ends=np.cumsum(np.bincount(token_of_slot, minlength=step.num_tokens)).astype(np.int32),
        slots=np.argsort(token_of_slot, kind="stable").astype(np.int32),
    )


class _PageTable:
    """The page numbers of all texts that a step reads, one after the other."""

    def __init__(self) -> None:
        self._found: dict[Run, int] = {}
        self._arrays: list[Ints] = []
        self._length = 0

    def index_of(self, run: Run) -> int:
        """Where those of a text begin."""
        if run not in self._found:
            self._found[run] = self._length
            self._arrays.append(run.page_numbers)
            self._length += len(run.page_numbers)
        return self._found[run]

    def pages(self) -> Ints:
        return np.concatenate(self._arrays) if self._arrays else np.zeros(0, np.int32)


def _readings(step: Step, table: _PageTable) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(index in the table, keys, time of the first key, first token, the one behind the last, branch) of stretches."""
    size = step.store.page_tokens
    spans, ranges = step.spans, step.ranges
    lengths = [_num_pages(span, size) for span in spans]
    shared = [0, *(_num_shared(one, two, size) for one, two in itertools.pairwise(spans)), 0]
    for first, last, begin, end in _stretches(lengths, shared):
        run, base = spans[first].run, spans[first].run.base
        token, behind = ranges[first][0], ranges[last][1]
        in_base = 0 if base is None else len(base.pages)
        if base is not None and begin < in_base:
            keys = min(len(base), min(end, in_base) * size) - begin * size
            time = base.place.first_time + begin * size
            yield table.index_of(base) + begin, keys, time, token, behind, _ANY_BRANCH
        if end > in_base:
            skip = max(begin, in_base) - in_base
            keys = min(spans[first].end, (end - in_base) * size) - skip * size
            time = run.place.first_time + skip * size
            yield table.index_of(run) + skip, keys, time, token, behind, _ANY_BRANCH
    companies: dict[int, list[int]] = {}
    for index, span in enumerate(spans):
        if span.company is not None:
            companies.setdefault(id(span.company), []).append(index)
    for indices in companies.values():
        company = spans[indices[0]].company
        assert company is not None
        token, behind = ranges[indices[0]][0], ranges[indices[-1]][1]
        for run, branch, length in company.members:
            if length:
                yield table.index_of(run), length, run.place.first_time, token, behind, branch


def _stretches(lengths: Sequence[int], shared: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """The tree of texts: (first text, last text, first page, the one behind the last) of what these read together.

    Args:
        lengths: the pages of each text, in an order in which texts that begin alike are neighbours.
        shared: for each text and one more, the pages that it begins with as the one before it.
    """
    open_nodes: list[tuple[int, int]] = []
    """(first text, pages to which its texts are alike)."""
    for index, length in enumerate(lengths):
        first, depth, after = index, length, shared[index + 1]
        while True:
            below = open_nodes[-1][1] if open_nodes else 0
            if depth > max(after, below):
                yield first, index, max(after, below), depth
            if below <= after:
                break
            first, depth = open_nodes.pop()
        if after > below:
            open_nodes.append((first, after))


def _num_pages(span: Span, size: int) -> int:
    """The pages of a text that all of its tokens see up to their own time."""
    in_base = 0 if span.run.base is None else len(span.run.base.pages)
    return in_base if span.company is not None else in_base + -(-span.end // size)


def _num_shared(one: Span, two: Span, size: int) -> int:
    """The pages that two texts begin with alike."""
    a, b = one.run.base, two.run.base
    limit = min(_num_pages(one, size), _num_pages(two, size))
    if a is b and a is not None:
        found = len(a.pages)
        if found < limit and one.run.pages[0] is two.run.pages[0]:
            found += _alike(one.run.page_numbers, two.run.page_numbers)
    else:
        found = _alike(_numbers(one), _numbers(two))
    found = min(found, limit)
    # The last page of a text may be shared as far as it is filled.
    while found and _keys_before(one, found, size) != _keys_before(two, found, size):
        found -= 1
    return found


def _numbers(span: Span) -> Ints:
    base = span.run.base
    if base is None:
        return span.run.page_numbers
    return base.page_numbers if span.company is not None else np.concatenate((base.page_numbers, span.run.page_numbers))


def _keys_before(span: Span, pages: int, size: int) -> int:
    """Keys of a text's first pages."""
    base = span.run.base
    in_base = 0 if base is None else len(base.pages)
    if base is not None and pages <= in_base:
        return min(len(base), pages * size)
    return (0 if base is None else len(base)) + min(span.end, (pages - in_base) * size)


def _alike(one: Ints, two: Ints) -> int:
    """How many numbers two arrays begin with alike."""
    count = min(len(one), len(two))
    differ = one[:count] != two[:count]
    return int(differ.argmax()) if differ.any() else count


def _extremes(
    times: NDArray[np.int64], start: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The largest and the smallest of the times of each range of tokens."""
    if not len(start):
        return start, start
    bounds = np.stack((start, start + count), 1).flatten()
    padded = np.append(times, times[-1:])
    return np.maximum.reduceat(padded, bounds)[::2], np.minimum.reduceat(padded, bounds)[::2]


def _counted(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, … up to each count, one after the other."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
