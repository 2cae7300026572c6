"""The stream of micro-batches that training runs on: packed rows, in an order that a saved state continues exactly.

Data is read in blocks (all of it at once, or `block_records` records when streaming). A block is planned as a whole:
samples are shuffled, laid out in rows, and the rows grouped into steps, all from the seed, the epoch and the place of
the block. So the state of the stream is three numbers, and any rank can tell every rank's share.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import IterableDataset

from parallelmind.columnar import PackedRow, pack_row
from parallelmind.data.batches import BatchLimits, RowPlan, StepPlanner
from parallelmind.data.collator import MicroBatch, TrainingRow
from parallelmind.data.encoder import DataCounts, EncodedSample, SampleEncoder
from parallelmind.data.numbering import Numbering
from parallelmind.data.rows import RowLimits, split_rows
from parallelmind.data.samples import parse_sample
from parallelmind.data.sources import JsonlSource, RecordSource, SourceRow
from parallelmind.errors import DataError, SettingsError

_SIMILAR_LENGTHS = 32
"""Steps among which rows are sorted by length, so that a batch has little padding."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which micro-batches of the stream belong to this process."""

    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    """Micro-batches of a step of this process; a step that needs fewer has some that teach nothing."""


class ParallelPretrainDataset(IterableDataset[MicroBatch]):
    """Micro-batches of packed rows from a source of samples.

    A record's branches are split over rows as in batch inference; loose samples (texts, conversations) become the
    branches of rows without a main, `limits.most` a row, or with `limits.balanced` a random number from `least` to
    `most`. Branches keep the number of their record, unless `numbering` gives them others.

    Args:
        epochs: passes over the data; None: without end.
        block_records: records read and shuffled together (streaming); None: all of them, kept in memory.
        learn_main: main is supervised too, once for each record.
    Raises:
        DataError: on iteration, a bad row, or data without a supervised token.
    """

    def __init__(
        self,
        source: RecordSource,
        encoder: SampleEncoder,
        *,
        limits: RowLimits,
        batch: BatchLimits,
        epochs: int | None = 1,
        block_records: int | None = None,
        shuffle: bool = True,
        seed: int = 42,
        learn_main: bool = False,
        share: Share | None = None,
        numbering: Numbering | None = None,
    ):
        super().__init__()
        self.source = source
        self.encoder = encoder
        self.limits = limits
        self.epochs = epochs
        self.block_records = block_records
        self.shuffle = shuffle
        self.seed = seed
        self.learn_main = learn_main
        self.numbering = numbering or Numbering()
        self.share = share or Share()
        self.planner = StepPlanner(batch, self.share.world_size * self.share.accumulation)
        self.counts = DataCounts()
        """Counts of the first pass over the data; complete at its end."""
        self._start = {"epoch": 0, "block": 0, "steps": 0}
        self._memory: list[EncodedSample] | None = None

    @classmethod
    def from_jsonl(
        cls,
        path: str | os.PathLike[str],
        tokenizer: Any,
        *,
        max_seq_len: int = 512,
        branches_per_sample: int = 8,
        batch_size: int = 16,
        **settings: Any,
    ) -> Self:
        """The rows of one file, for a training loop of one's own; further `settings` are those of this class.

        Args:
            max_seq_len: tokens of one branch at most; what is longer is cut.
            branches_per_sample: branches of a row at most.
            batch_size: branches of a batch at most.
        """
        encoder = SampleEncoder(tokenizer, max_seq_len=max_seq_len)
        limits, batch = RowLimits(most=branches_per_sample), BatchLimits(size=batch_size)
        return cls(JsonlSource(Path(path)), encoder, limits=limits, batch=batch, **settings)

    def __iter__(self) -> Iterator[MicroBatch]:
        """This process's micro-batches; the last one is marked, unless the stream has no end."""
        held: MicroBatch | None = None
        for micro in self._dealt():
            if held is not None:
                yield held
            held = micro
        if held is not None:
            yield replace(held, last=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin after the step whose micro-batches carried this state.

        Raises SettingsError if the state is of a stream with steps of another size.
        """
        if (former := state.get("layout")) != self.planner.layout:
            raise SettingsError(
                f"the checkpoint is of a run with steps of {former}, and this one has steps of {self.planner.layout}: "
                "the place in the data would not be the same; give a --batch_size and --accumulation_steps that make, "
                "with the number of processes, the same step."
            )
        self._start = {name: int(state[name]) for name in self._start}
        if self.block_records is not None:
            self.counts = DataCounts(**state["counts"])

    def samples(self) -> list[EncodedSample]:
        """All samples, encoded once and kept. Raises DataError if none has a supervised token."""
        if self._memory is None:
            encoded = (self._encode(row, self.counts) for row in self.source.read())
            self._memory = [sample for sample in encoded if sample is not None]
            if not self._plan(self._memory, 0, 0, self.counts):
                raise DataError(_nothing(self.source.name, self.counts))
        return self._memory

    def largest_row(self) -> int:
        """Branches of the largest row there can be, of data in memory."""
        samples = self.samples()
        loose = sum(sample.loose for sample in samples)
        return min(self.limits.most, max(loose, *(len(sample.branches) for sample in samples)))

    def steps(self, epochs: int) -> int:
        """Optimizer steps of this many epochs over data in memory."""
        samples = self.samples()
        planned = (self._plan(samples, epoch, 0, None) for epoch in range(epochs))
        return sum(1 for steps in planned for _ in self.planner.joined((step, None) for step in steps))

    def _dealt(self) -> Iterator[MicroBatch]:
        """This process's micro-batches, as many of every step as every other process has."""
        share = self.share
        for step, state in self._planned():
            batches = self.planner.micro_batches(step)
            for place in range(share.rank, share.accumulation * share.world_size, share.world_size):
                own = batches[place] if place < len(batches) else ()
                yield MicroBatch([_training_row(plan) for plan in own] or [_blank(step[0])], state)

    def _planned(self) -> Iterator[tuple[list[RowPlan], dict[str, Any]]]:
        """The steps from where the state says, and the state after each."""
        first = self._start
        for epoch in count(first["epoch"]) if self.epochs is None else range(first["epoch"], self.epochs):
            block, steps = (first["block"], first["steps"]) if epoch == first["epoch"] else (0, 0)
            found = block > 0 or steps > 0
            for step in self.planner.joined(self._epoch(epoch, block=block, steps=steps)):
                found = True
                yield step
            if not found:
                raise DataError(_nothing(self.source.name, self.counts))

    def _epoch(self, epoch: int, *, block: int, steps: int) -> Iterator[tuple[list[RowPlan], dict[str, Any]]]:
        """The planned steps of an epoch from one of a block on, and the state after each."""
        for at, planned, counts in self._blocks(epoch, block):
            for index in range(steps if at == block else 0, len(planned)):
                place = {"epoch": epoch, "block": at, "steps": index + 1}
                yield planned[index], {**place, "layout": self.planner.layout, **counts}

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple[int, list[list[RowPlan]], dict[str, Any]]]:
        """(number of its first record, its steps, the counts before and with it) of each block."""
        if self.block_records is None:
            yield 0, self._plan(self.samples(), epoch, 0, None), {}
            return
        source = self.source.read(start)
        while rows := list(islice(source, self.block_records)):
            before = self.counts.as_dict()
            counts = self.counts if epoch == 0 else DataCounts()
            encoded = (self._encode(row, counts) for row in rows)
            samples = [sample for sample in encoded if sample is not None]
            plans = self._plan(samples, epoch, start, counts)
            yield start, plans, {"counts": before, "counts_with_block": self.counts.as_dict()}
            start = rows[-1].index + 1

    def _encode(self, row: SourceRow, counts: DataCounts) -> EncodedSample | None:
        return self.encoder.encode(parse_sample(row.fields, row.where, row.file), counts)

    def _plan(
        self, samples: Sequence[EncodedSample], epoch: int, block: int, counts: DataCounts | None
    ) -> list[list[RowPlan]]:
        """The steps of a block; the same whenever it is asked for."""
        rng = random.Random(f"{self.seed} {epoch} {block}")
        order = list(samples)
        if self.shuffle:
            rng.shuffle(order)
        lost = counts or DataCounts()
        rows = [row for sample in order if not sample.loose for row in self._record_rows(sample, lost)]
        rows += self._loose_rows([sample for sample in order if sample.loose], rng, lost)
        rows = [replace(row, numbers=self.numbering.of_row(row.numbers, rng)) for row in rows]
        if counts is not None:
            for row in rows:
                row.count(counts)
        if not self.shuffle:
            return self.planner.steps(rows)
        rng.shuffle(rows)
        window = _SIMILAR_LENGTHS * self.planner.step_size
        steps = []
        for start in range(0, len(rows), window):
            steps += self.planner.steps(sorted(rows[start : start + window], key=lambda row: row.tokens))
        rng.shuffle(steps)
        return steps

    def _record_rows(self, sample: EncodedSample, counts: DataCounts) -> list[RowPlan]:
        lengths = [len(branch) for branch in sample.branches]
        split = split_rows(lengths, self.limits, main_tokens=len(sample.main))
        if lost := sorted(set(range(len(lengths))) - {place for row in split for place in row}):
            self.encoder.lost_rows(sample, lost, self.limits.max_tokens, counts)
        rows: list[RowPlan] = []
        for places in split:
            branches = [sample.branches[place] for place in places]
            numbers = [branch.number for branch in branches]
            learn_main = self.learn_main and not rows
            rows.append(RowPlan(sample.main, branches, numbers, learn_main, (sample.where,)))
        return rows

    def _loose_rows(self, samples: Sequence[EncodedSample], rng: random.Random, counts: DataCounts) -> list[RowPlan]:
        groups: list[list[EncodedSample]] = []
        most = room = 0
        for sample in samples:
            length = len(sample.branches[0])
            if self.limits.max_tokens and length > self.limits.max_tokens:
                self.encoder.lost_rows(sample, [0], self.limits.max_tokens, counts)
                continue
            if not groups or len(groups[-1]) == most or (self.limits.max_tokens and length > room):
                groups.append([])
                most = rng.randint(self.limits.least, self.limits.most) if self.limits.balanced else self.limits.most
                room = self.limits.max_tokens
            groups[-1].append(sample)
            room -= length
        return [
            RowPlan(
                main=(),
                branches=[sample.branches[0] for sample in group],
                numbers=range(1, len(group) + 1),
                learn_main=False,
                sources=tuple(sample.where for sample in group),
            )
            for group in groups
        ]


def _training_row(plan: RowPlan) -> TrainingRow:
    row = pack_row(plan.main, [branch.ids for branch in plan.branches], branch_numbers=plan.numbers)
    loss_mask = bytearray([plan.learn_main]) * len(plan.main) + b"".join(branch.loss_mask for branch in plan.branches)
    return TrainingRow(row, torch.frombuffer(loss_mask, dtype=torch.bool), plan.sources)


def _blank(plan: RowPlan) -> TrainingRow:
    """One token without a label: keeps processes in step without a gradient."""
    row = _training_row(plan)
    first = slice(1)
    token = PackedRow(
        input_ids=row.row.input_ids[first], branch_ids=row.row.branch_ids[first], time_ids=row.row.time_ids[first]
    )
    return TrainingRow(token, torch.zeros(1, dtype=torch.bool), row.sources)


def _nothing(name: str, counts: DataCounts) -> str:
    if not counts.records:
        return f"{name} has no records; expected one JSON object a line."
    lost = " ".join(counts.notes[:3])
    return (
        f"{name}: none of its {counts.records} records leaves a supervised token; raise --max_seq_len or "
        f"--max_total_tokens. {lost}"
    )
