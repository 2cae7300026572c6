"""With which numbers of rows a product gives each row the same bits, on this processor.

A matrix library chooses how it sums by the shape of a product, the number of rows included. With AVX-512 oneDNN sums
alike for every number of rows from two on. With AMX tiles it does not: it cuts the sum into parts by the number of
rows, so that a token's result would depend on who else is in the batch. No document says how; so it is asked: a product
of each candidate size is computed once, of numbers whose sums cancel. Its result is nothing but rounding, and any other
order of summing shows in it.

Shapes: R rows, K features that are summed over, N features that come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows that products are cut to, and filled up to, where not all numbers give the same bits."""
_LEAST = 4
"""Where fewer rows than this differ, they are filled up."""
_MOST_WORK = 2**34
"""Multiplications that one trial may take; larger sizes are not tried, and not used."""
_CALL_COST, _LEAST_COST = 25, 60
"""What a call costs besides its rows, and what it costs at least, in rows: reading the weight. Measured with AMX."""
_EXPECTED = (1, 4, 16, 32, 64, 128, 256, 512)
"""Numbers of rows that a set of sizes is chosen for."""
_SUMS, _LEAST_VECTORS, _MOST_VECTORS = 2**17, 9, 2**12
"""How many sums a trial looks at, in how many different rows: a sum of few terms seldom shows how it was made."""
_ALIGNMENT = 64
"""Bytes; the vector instructions of some libraries sum otherwise where rows begin elsewhere."""

Multiply = Callable[[Tensor], Tensor]
"""Rows [R, K] → [R, N], by a weight that is ready."""


@dataclass(frozen=True)
class RowCounts:
    """The numbers of rows that products of one shape are computed with."""

    least: int = 2
    most: int = 2**30
    """All of `padded_rows` from the first to the second, where `sizes` is empty."""
    sizes: tuple[int, ...] = ()

    def calls(self, rows: int) -> tuple[int, ...]:
        """The calls that a number of rows is computed in: together they have at least as many."""
        if self.sizes:
            return cut(rows, self.sizes)
        whole, rest = divmod(rows, self.most)
        if whole and not rest:
            return (self.most,) * whole
        return (self.most,) * whole + (max(self.least, padded_rows(rest)),)

    def apply(self, rows: Tensor, multiply: Multiply) -> Tensor:
        """Rows [R, K] → [R, N]."""
        calls = self.calls(len(rows))
        if len(calls) == 1:
            return _filled_up(rows, calls[0], multiply)
        ends = zip(accumulate(calls), calls, strict=True)
        return torch.cat([_filled_up(rows[end - size : end], size, multiply) for end, size in ends])


def _filled_up(rows: Tensor, size: int, multiply: Multiply) -> Tensor:
    count = len(rows)
    if count < size:
        return multiply(F.pad(rows, (0, 0, 0, size - count)))[:count]
    return multiply(rows if rows.data_ptr() % _ALIGNMENT == 0 else rows.clone())


def alike(multiply: Multiply, vectors: Tensor, out_features: int) -> RowCounts:
    """The numbers of rows whose products give a row the same bits, at any place among the rows.

    Which of several sets is taken depends on nothing that is measured in time, so it is the same in every run.

    Args:
        vectors: different rows [V, K] to try it with, see `cancelling`.
        out_features: N.
    """
    largest = max(SIZES[0], _MOST_WORK // max(1, vectors.shape[1] * out_features))
    tried = sorted({padded_rows(size) for size in range(2, min(largest, SIZES[-1]) + 1)})
    tried = [size for size in tried if size <= largest]
    classes: list[tuple[list[int], Tensor]] = []
    for size in tried:
        # All vectors in calls of this size: so each also stands at another place than with another size.
        result = _in_calls_of(size, vectors, multiply)
        for sizes, expected in classes:
            if torch.equal(expected, result):
                sizes.append(size)
                break
        else:
            classes.append(([size], result))
    for least in (2, _LEAST):
        if [size for size in tried if size >= least] in [[s for s in sizes if s >= least] for sizes, _ in classes]:
            return RowCounts(least=least, most=tried[-1])
    sets = [tuple(size for size in sizes if size in SIZES) for sizes, _ in classes]
    return RowCounts(sizes=min((sizes for sizes in sets if sizes), key=_cost, default=SIZES[:1]))


def _in_calls_of(size: int, vectors: Tensor, multiply: Multiply) -> Tensor:
    """The products [V, N] of rows [V, K], always with so many in a call: the last ones are filled up with the first."""
    calls = -(-len(vectors) // size)
    rows = vectors.repeat(-(-calls * size // len(vectors)), 1)[: calls * size]
    return torch.cat([multiply(some) for some in rows.split(size)])[: len(vectors)]


def cancelling(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [N, K] and rows [V, K] whose products are zero, but for rounding."""
    half = in_features // 2
    chance = torch.Generator().manual_seed(0)
    order = torch.randperm(half, generator=chance)
    few = torch.randn(min(out_features, 256), half, generator=chance).to(dtype)
    weights = few.repeat(-(-out_features // max(1, len(few))), 1)[:out_features]
    count = min(_MOST_VECTORS, max(_LEAST_VECTORS, _SUMS // max(1, out_features)))
    rows = torch.randn(count, half, generator=chance).to(dtype)
    rest = in_features - 2 * half
    return (
        torch.cat((weights, weights[:, order], weights.new_zeros(out_features, rest)), 1),
        torch.cat((rows, -rows[:, order], rows.new_zeros(count, rest)), 1),
    )


def _cost(sizes: tuple[int, ...]) -> float:
    """What the expected numbers of rows cost in calls of these sizes, each against one call of its own."""
    return sum(sum(map(_call_cost, cut(rows, sizes))) / _call_cost(rows) for rows in _EXPECTED)


def _call_cost(size: int) -> int:
    return max(_LEAST_COST, _CALL_COST + size)


@lru_cache(maxsize=2**14)
def cut(rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Calls of these sizes that have at least `rows` rows together, as cheap as can be."""
    most = max(sizes)
    if not rows:
        return (min(sizes),)
    if rows > 2 * most:  # the rest is cut with at least one whole call, so that a few rows do not go alone
        whole = rows // most - 1
        return (most,) * whole + cut(rows - whole * most, sizes)
    cheapest = [(0, 0)]
    for count in range(1, rows + 1):
        cheapest.append(min((_call_cost(size) + cheapest[max(0, count - size)][0], size) for size in sizes))
    found = []
    while rows > 0:
        found.append(cheapest[rows][1])
        rows -= found[-1]
    return tuple(sorted(found, reverse=True))


def padded_rows(rows: int) -> int:
    """The number of rows a product is computed with where any number gives the same bits.

    oneDNN compiles and keeps a kernel for each number of rows it meets, and a scheduler makes all numbers: with these
    few dozens, memory stays flat and compiling ends early.
    """
    for limit, step in ((16, 1), (64, 8), (256, 16)):
        if rows <= limit:
            return -(-rows // step) * step
    return -(-rows // 64) * 64
