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
from parallelmind.engine.texts import Run

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
    families = _families(step)
    texts = [_Text.of(spans[0], size) for spans, _, _ in families]
    for first, last, begin, end in _stretches(texts, size):
        run, keys = _reader(texts[first : last + 1]), texts[first].keys_between(begin, end, size)
        time = run.place.first_time + begin * size
        yield table.index_of(run) + begin, keys, time, families[first][1][0], families[last][2][-1], _ANY_BRANCH
    for spans, starts, ends in families:
        company, base = spans[0].company, spans[0].run.base
        if company is not None:
            for run, branch, length in company.members:
                if length:
                    yield table.index_of(run), length, run.place.first_time, starts[0], ends[-1], branch
        elif base is not None:
            pages = [span.run.pages[0] for span in spans]
            if len(set(pages)) == len(pages):  # nothing is shared, as is usual
                for span, start, end in zip(spans, starts, ends, strict=True):
                    run = span.run
                    yield table.index_of(run), span.end, run.place.first_time, start, end, _ANY_BRANCH
                continue
            texts_behind = [_Text(span.run, span.end, -(-span.end // size)) for span in spans]
            for first, last, begin, end in _stretches(texts_behind, size):
                run, keys = _reader(texts_behind[first : last + 1]), texts_behind[first].keys_between(begin, end, size)
                time = run.place.first_time + begin * size
                yield table.index_of(run) + begin, keys, time, starts[first], ends[last], _ANY_BRANCH


def _families(step: Step) -> list[tuple[list[Span], list[int], list[int]]]:
    """The spans whose texts continue the same one, with where the tokens of each begin and end."""
    found: list[tuple[list[Span], list[int], list[int]]] = []
    former: Run | None = None
    for span, (start, end) in zip(step.spans, step.ranges, strict=True):
        base = span.run.base
        if base is None or base is not former or span.company is not found[-1][0][0].company:
            found.append(([], [], []))
        former = base
        spans, starts, ends = found[-1]
        spans.append(span)
        starts.append(start)
        ends.append(end)
    return found


@dataclass(frozen=True, slots=True)
class _Text:
    """The first pages of a run, as far as all tokens that read them see them up to their own time."""

    run: Run
    num_keys: int
    num_pages: int

    @classmethod
    def of(cls, span: Span, size: int) -> _Text:
        """What the text of a span continues, or, if that is nothing, the text itself."""
        base = span.run.base
        if base is not None:
            return cls(base, len(base), len(base.pages))
        return cls(span.run, 0, 0) if span.company is not None else cls(span.run, span.end, -(-span.end // size))

    def keys_between(self, begin: int, end: int, size: int) -> int:
        """Keys in a range of its pages."""
        return min(self.num_keys, end * size) - begin * size

    def num_shared(self, other: _Text, size: int) -> int:
        """The pages that two texts begin with alike."""
        limit = min(self.num_pages, other.num_pages)
        if self.run is not other.run:
            limit = min(limit, _alike(self.run.page_serials, other.run.page_serials))
        # The last page of a text may be filled further in one than in the other.
        while limit and self.keys_between(0, limit, size) != other.keys_between(0, limit, size):
            limit -= 1
        return limit


def _reader(texts: Sequence[_Text]) -> Run:
    """Of texts that share pages the one that holds most of them: others may not see the first ones any more."""
    return texts[0].run if not texts[0].run.first_page else min((text.run for text in texts), key=_first_page)


def _first_page(run: Run) -> int:
    return run.first_page


def _stretches(texts: Sequence[_Text], size: int) -> Iterator[tuple[int, int, int, int]]:
    """The tree of texts: (first text, last text, first page, the one behind the last) of what these read together.

    Args:
        texts: in an order in which those that begin alike are neighbours.
        size: tokens of a page.
    """
    shared = [one.num_shared(two, size) for one, two in itertools.pairwise(texts)]
    open_nodes: list[tuple[int, int]] = []
    """(first text, pages to which its texts are alike)."""
    for index, text in enumerate(texts):
        first, depth, after = index, text.num_pages, shared[index] if index < len(shared) else 0
        while True:
            below = open_nodes[-1][1] if open_nodes else 0
            if depth > max(after, below):
                yield first, index, max(after, below), depth
            if below <= after:
                break
            first, depth = open_nodes.pop()
        if after > below:
            open_nodes.append((first, after))


def _alike(one: NDArray[np.int64], two: NDArray[np.int64]) -> int:
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
