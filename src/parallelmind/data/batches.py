"""From rows in an order to optimizer steps, and from a step to the micro-batches that are computed one after another.

A step holds as many branches as all micro-batches of it together, of all processes. Which rows it holds depends on
that number alone, so a smaller batch that is accumulated more often, or more processes, gives the same step. Only then
is a step divided: rows stay whole where they fit, and are cut between branches where a batch is smaller than a row.
A part keeps its main and the numbers of its branches, so that the parts together have the loss of the whole row.

Micro-batches of a number of tokens (`by_tokens`) take rows that `composer.py` cut and put in order; a step then depends
on that number and on how many of them it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from parallelmind.columnar import pack_row
from parallelmind.data.collator import TrainingRow
from parallelmind.data.encoder import DataCounts
from parallelmind.data.planned import PlannedBranch
from parallelmind.data.store import SampleStore

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How large a micro-batch may be."""

    size: int
    """Branches of a micro-batch at most, its rows with `by_samples`, or its tokens with `by_tokens`."""
    by_samples: bool = False
    by_tokens: bool = False
    whole_rows: bool = False
    """Branches of a row see one another, so no row is cut: one that is larger than a batch is a batch of its own."""
    multiple_of: int = 1
    """The length of padded sequences is a multiple of this."""

    def __post_init__(self) -> None:
        assert self.size >= 1
        assert not (self.by_samples and self.by_tokens)

    def width(self, tokens: int) -> int:
        """The length of a sequence of so many tokens."""
        return -(-tokens // self.multiple_of) * self.multiple_of


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A row, or a part of one, that is to be packed."""

    store: SampleStore
    main_tokens: int
    branches: Sequence[PlannedBranch]
    """Under the main of the first one's sample, where there is one."""
    numbers: Sequence[int]
    learn_main: bool
    sources: tuple[str, ...]
    """File and line of its records: one, or one for each branch."""
    is_long: bool = False
    """Its texts have the rotary frequencies of long ones; no micro-batch has rows of both kinds."""

    @property
    def tokens(self) -> int:
        return self.main_tokens + sum(branch.tokens for branch in self.branches)

    def count(self, counts: DataCounts) -> None:
        counts.rows += 1
        counts.unrelated_rows += not self.main_tokens and len(self.branches) > 1
        counts.branches += len(self.branches)
        counts.tokens += self.tokens
        counts.supervised_tokens += sum(branch.supervised for branch in self.branches)
        counts.supervised_tokens += max(0, self.main_tokens - 1) if self.learn_main else 0

    def load(self) -> TrainingRow:
        """The packed row."""
        main = self.store.main(self.branches[0].sample) if self.main_tokens else ()
        loaded = [self.store.branch(branch) for branch in self.branches]
        row = pack_row(main, [ids for ids, _ in loaded], branch_numbers=self.numbers)
        loss_mask = bytearray([self.learn_main]) * len(main) + b"".join(mask for _, mask in loaded)
        return TrainingRow(row, torch.frombuffer(loss_mask, dtype=torch.bool), self.sources)

    def cut(self, place: int) -> tuple[RowPlan, RowPlan]:
        """The branches before a place and those from it on; main is supervised in the first part only."""
        places = range(len(self.branches))
        return self._part(places[:place]), replace(self._part(places[place:]), learn_main=False)

    def by_length(self, longest_short: int, *, whole: bool) -> list[RowPlan]:
        """The row as one of short texts and one of long ones, or as what it has of these; a `whole` one is not cut."""
        places = range(len(self.branches))
        is_long = [self.main_tokens + branch.tokens > longest_short for branch in self.branches]
        if whole or len(set(is_long)) == 1:
            return [replace(self, is_long=any(is_long))]
        short = self._part([place for place in places if not is_long[place]])
        long = self._part([place for place in places if is_long[place]])
        return [short, replace(long, learn_main=False, is_long=True)]

    def _part(self, places: Sequence[int]) -> RowPlan:
        return replace(
            self,
            branches=[self.branches[place] for place in places],
            numbers=[self.numbers[place] for place in places],
            sources=self.sources if len(self.sources) == 1 else tuple(self.sources[place] for place in places),
        )


class StepPlanner:
    """Groups rows into steps of `count` micro-batches, of all processes together."""

    def __init__(self, batch: BatchLimits, count: int):
        self._batch = batch
        self._count = count
        self.step_size = batch.size * count
        """Branches of a step at most, or its rows."""

    @property
    def layout(self) -> str:
        """What the composition of steps depends on."""
        if self._batch.by_tokens:
            return f"{self._count} batches of {self._batch.size} tokens"
        size = f"{self.step_size} {'rows' if self._batch.by_samples else 'branches'}"
        return f"{size} in batches of {self._batch.size}" if self._batch.whole_rows else size

    def steps(self, rows: Iterable[RowPlan]) -> list[list[RowPlan]]:
        """The rows of each step, in the order given."""
        if not self._keeps_rows:
            return self._filled(rows, self.step_size)
        steps: list[list[RowPlan]] = []
        batches = room = 0
        for batch in self._filled(rows, self._batch.size):
            size = sum(map(self._size, batch))
            if not steps or batches == self._count or size > room:
                steps.append([])
                batches, room = 0, self.step_size
            steps[-1] += batch
            batches, room = batches + 1, room - size
        return steps

    def joined(self, steps: Iterable[tuple[list[RowPlan], T]]) -> Iterator[tuple[list[RowPlan], T]]:
        """Merge small steps that follow one another. Each step has a mark; a merged one has that of its last."""
        held: tuple[list[RowPlan], T] | None = None
        for rows, mark in steps:
            if held is not None and self._fits(together := held[0] + rows):
                held = together, mark
                continue
            if held is not None:
                yield held
            held = rows, mark
        if held is not None:
            yield held

    def micro_batches(self, step: Sequence[RowPlan]) -> list[list[RowPlan]]:
        """A step as micro-batches, at most `count` of them."""
        batches = self._filled(step, self._batch.size)
        return batches if len(batches) <= self._count else self._filled(step, self._batch.size, everywhere=True)

    def _fits(self, rows: Sequence[RowPlan]) -> bool:
        if rows[0].is_long != rows[-1].is_long:  # each step had rows of one kind
            return False
        if sum(map(self._size, rows)) > self.step_size:
            return False
        return not self._keeps_rows or len(self._filled(rows, self._batch.size)) <= self._count

    def _filled(self, rows: Iterable[RowPlan], size: int, *, everywhere: bool = False) -> list[list[RowPlan]]:
        """Groups of at most `size`; a row that is larger is cut where a group is full, or any row is `everywhere`."""
        groups: list[list[RowPlan]] = []
        room = 0
        for row in rows:
            may_cut = not self._keeps_rows and (everywhere or self._size(row) > size)
            while may_cut and self._size(row) > (space := room or size):
                part, row = row.cut(space)
                if not room:
                    groups.append([])
                groups[-1].append(part)
                room = 0
            if not groups or self._size(row) > room:
                groups.append([])
                room = size
            groups[-1].append(row)
            room -= self._size(row)
        return groups

    @property
    def _keeps_rows(self) -> bool:
        """Rows are as they are to be computed: they are not cut to fill a step."""
        return self._batch.whole_rows or self._batch.by_tokens

    def _size(self, row: RowPlan) -> int:
        if self._batch.by_tokens:
            return row.tokens
        return 1 if self._batch.by_samples else len(row.branches)
