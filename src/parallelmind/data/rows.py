"""Split the branches of one record into rows: the groups that are packed and decoded together.

Branches keep their order and their number within the record. A row starts a new one when it has `most`
branches or when the next prompt would take it over `max_tokens`.

- fixed mode (`balanced=False`): every row is as full as possible; the last may be small (9 by 4: 4, 4, 1).
- dynamic mode (`balanced=True`): no row under `least` where that can be avoided (else as little under it as
  possible), then as few rows as possible, then sizes as equal as possible (9 with most 4, least 3: 3, 3, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RowLimits:
    """How large a row may be."""

    most: int
    """Branches in a row at most."""
    least: int = 1
    """Branches in a row at least, where avoidable; read in dynamic mode."""
    balanced: bool = False
    """Dynamic mode."""
    max_tokens: int = 0
    """Tokens of main and the prompts of a row at most; 0: no limit."""

    def __post_init__(self) -> None:
        assert 1 <= self.least <= self.most
        assert self.max_tokens >= 0


def split_rows(prompt_tokens: Sequence[int], limits: RowLimits, *, main_tokens: int) -> list[list[int]]:
    """The rows of a record, each a list of indices into `prompt_tokens`.

    Branches that do not fit beside main even alone are in no row.
    """
    budget = limits.max_tokens - main_tokens if limits.max_tokens else sum(prompt_tokens)
    fitting = [index for index, tokens in enumerate(prompt_tokens) if tokens <= budget]
    lengths = [prompt_tokens[index] for index in fitting]
    sizes = _balanced(lengths, limits, budget) if limits.balanced else _filled(lengths, limits, budget)
    rows, start = [], 0
    for size in sizes:
        rows.append(fitting[start : start + size])
        start += size
    return rows


def _filled(lengths: Sequence[int], limits: RowLimits, budget: int) -> list[int]:
    sizes: list[int] = []
    room = 0
    for length in lengths:
        if not sizes or sizes[-1] == limits.most or length > room:
            sizes.append(0)
            room = budget
        sizes[-1] += 1
        room -= length
    return sizes


def _balanced(lengths: Sequence[int], limits: RowLimits, budget: int) -> list[int]:
    count = len(lengths)
    rows = -(-count // limits.most)
    even = [count // rows + (place < count % rows) for place in range(rows)] if rows else []
    start = 0
    for size in even:
        if sum(lengths[start : start + size]) > budget:
            return _balanced_by_search(lengths, limits, budget)
        start += size
    return even


def _balanced_by_search(lengths: Sequence[int], limits: RowLimits, budget: int) -> list[int]:
    # best[i]: (branches missing to least, rows, sum of squared sizes, size of the last row) of the first i
    # branches; for a given number of rows the sum of squares is smallest when the sizes are most equal.
    best: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]
    for end in range(1, len(lengths) + 1):
        candidates = []
        tokens = 0
        for size in range(1, min(limits.most, end) + 1):
            tokens += lengths[end - size]
            if tokens > budget:
                break
            missing, rows, squares, _ = best[end - size]
            missing += max(0, limits.least - size)
            candidates.append((missing, rows + 1, squares + size * size, size))
        best.append(min(candidates))
    sizes: list[int] = []
    end = len(lengths)
    while end:
        sizes.append(best[end][3])
        end -= sizes[-1]
    return sizes[::-1]
