"""Which numbers the branches of a training row get: those that inference will use are all to be trained.

A row of 8 branches that are always numbered 1 to 8 teaches nothing about branch 9. So numbers are drawn at random, from
1 to R, the range of the model; inference gives a branch beyond R the position of one within (`number_in_range`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from parallelmind.columnar import numbers_in_range


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """How the branches of rows are numbered.

    Numbers of a row differ, as those of branches that must be told apart. So R is at least as large as the largest row.
    """

    branch_range: int | None = None
    """R; None: branches keep the numbers of their record."""
    drawn: bool = True
    """At random, as in training; else the numbers that inference uses."""

    def of_row(self, numbers: Sequence[int], rng: random.Random) -> Sequence[int]:
        """The numbers of a row whose branches have these numbers in their record, in ascending order if drawn."""
        if self.branch_range is None:
            return numbers
        if self.drawn:
            return sorted(rng.sample(range(1, self.branch_range + 1), len(numbers)))
        return numbers_in_range(numbers, self.branch_range)
