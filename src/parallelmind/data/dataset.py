"""The stream of micro-batches that training runs on: packed rows, in an order that a saved state continues exactly.

Data is planned in blocks: of all samples in an order of the epoch, or of the `block_records` records that were read
last when streaming. The samples of a block are shuffled, laid out in rows, and the rows grouped into steps, all from
the seed, the epoch and the place of the block. So the state of the stream is three numbers, and any process can tell
every process's share. Only lengths are needed for that; tokens are loaded for the rows of this process alone.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from parallelmind.columnar import PackedRow
from parallelmind.data import composer
from parallelmind.data.batches import BatchLimits, RowPlan, StepPlanner
from parallelmind.data.collator import MicroBatch, TrainingRow
from parallelmind.data.encoder import DataCounts, EncodedSample, SampleEncoder
from parallelmind.data.mixture import Mixture
from parallelmind.data.numbering import Numbering
from parallelmind.data.planned import PlannedSample
from parallelmind.data.row_plans import plan_rows
from parallelmind.data.rows import RowLimits
from parallelmind.data.samples import parse_sample
from parallelmind.data.sources import JsonlSource, RecordSource, SourceRow
from parallelmind.data.store import JoinedStore, MemoryStore, SampleStore
from parallelmind.errors import DataError, SettingsError

_LOGGER = logging.getLogger(__name__)
_SIMILAR_LENGTHS = 32
"""Steps among which rows are sorted by length, so that a batch has little padding."""
_PLANNED_TOGETHER = 2**15
"""Samples of a block of data that is not streamed: what planning needs of them takes memory."""


Prepare = Callable[[RecordSource, SampleEncoder], tuple[SampleStore, DataCounts] | None]
"""Encodes the samples of a source, unless it cannot."""


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
        block_records: records read and shuffled together (streaming); None: all of them are at hand.
        learn_main: main is supervised too, once for each record.
        prepare: encodes the samples of a source; None, as where it gives None: they are kept in memory.
        mixture: the shares of the parts of a `ChainedSource` (not when streaming).
        longest_short: the model turns the keys of texts of more tokens by other frequencies
            (`parallelmind.models.rope_lengths`), of which a forward has one kind, so such texts are computed apart.
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
        prepare: Prepare | None = None,
        mixture: Mixture | None = None,
        longest_short: int | None = None,
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
        self._batch = batch
        self._prepare = prepare
        self._mixture = mixture or Mixture()
        self._longest_short = longest_short
        self._store: JoinedStore | None = None
        self._largest = 0

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
        """This process's micro-batches; the last one is marked, unless the stream has no end.

        Of several workers of a DataLoader each gives those of its turn.
        """
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        held: _Dealt | None = None
        turn = 0
        for dealt in self._dealt():
            if held is not None:
                if turn == own:
                    yield held.load()
                turn = (turn + 1) % workers
            held = dealt
        if held is not None and turn == own:
            yield replace(held.load(), last=True)

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
        if (former := state.get("data")) is not None and former != self.source.identity():
            raise SettingsError(
                f"the checkpoint is of a run on other data than {self.source.name} holds now: the place in the data "
                "would not be the same; give the data of that run, or continue its adapter on this data with "
                "--load_lora, under a --lora_name of its own."
            )
        order = self._order()
        if changed := [
            f"{name} {order.get(name)} instead of {before}"
            for name, before in state.get("order", {}).items()
            if order.get(name) != before
        ]:
            _LOGGER.warning(
                "the rows of this run come in another order than those of the run whose checkpoint it continues (%s): "
                "of this pass over the data some records come twice, and others not at all",
                ", ".join(changed),
            )
        self._start = {name: int(state[name]) for name in self._start}
        if self.block_records is not None:
            self.counts = DataCounts(**state["counts"])

    def store(self) -> SampleStore:
        """All samples, encoded once and kept. Raises DataError if none has a supervised token."""
        return self._joined()

    def samples(self) -> Sequence[EncodedSample]:
        """The same, of sources whose samples are kept in memory."""
        return [sample for store in self._joined().stores if isinstance(store, MemoryStore) for sample in store.samples]

    def largest_row(self) -> int:
        """Branches of the largest row there can be, of data that is not streamed."""
        self.store()
        return min(self.limits.most, self._largest)

    def steps(self, epochs: int) -> int:
        """Optimizer steps of this many epochs over data that is not streamed."""
        self.store()
        return sum(1 for epoch in range(epochs) for _ in self.planner.joined(self._epoch(epoch, block=0, steps=0)))

    def _joined(self) -> JoinedStore:
        if self._store is None:
            stores = []
            parts = self.source.parts()
            for source in parts:
                prepared = None if self._prepare is None else self._prepare(source, self.encoder)
                store, counts = prepared or self._in_memory(source)
                stores.append(store)
                self.counts.add(counts)
                if len(parts) > 1 and not counts.records:
                    self.counts.note(f"{source.name}: no record of it is used.")
            self._store = JoinedStore(stores)
            self._count()
        return self._store

    def _in_memory(self, source: RecordSource) -> tuple[SampleStore, DataCounts]:
        counts = DataCounts()
        encoded = (_encode(self.encoder, row, counts) for row in source.read())
        return MemoryStore([sample for sample in encoded if sample is not None]), counts

    def _count(self) -> None:
        """Plan all samples once, for what only the plan tells."""
        assert self._store is not None
        loose = found = 0
        everything = range(len(self._store))
        for start in range(0, len(everything), _PLANNED_TOGETHER):
            samples = [self._store.planned(sample) for sample in everything[start : start + _PLANNED_TOGETHER]]
            loose += sum(sample.loose for sample in samples)
            self._largest = max(loose, self._largest, *(len(sample.branches) for sample in samples))
            found += len(self._plan(self._store, samples, f"0 {start}", self.counts))
        if not found:
            raise DataError(_nothing(self.source.name, self.counts))

    def _dealt(self) -> Iterator[_Dealt]:
        """This process's micro-batches, as many of every step as every other process has."""
        share = self.share
        for step, state in self._planned():
            batches = self.planner.micro_batches(step)
            for place in range(share.rank, share.accumulation * share.world_size, share.world_size):
                own = batches[place] if place < len(batches) else []
                yield _Dealt(own, step[0], self._batch, state)

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
        stream = self._blocks(epoch, block) if self.block_records is None else self._read(epoch, block)
        whole = {"layout": self.planner.layout, "data": self.source.identity(), "order": self._order()}
        for at, planned, counts in stream:
            for index in range(steps if at == block else 0, len(planned)):
                yield planned[index], {"epoch": epoch, "block": at, "steps": index + 1, **whole, **counts}

    def _order(self) -> dict[str, str]:
        """What the order of the rows depends on, beside the data and the size of a step."""
        limits = self.limits
        settings = {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "shuffle_buffer": self.block_records,
            "data_weights": " ".join(map(str, self._mixture.weights)) or None,
            "branches of a row": f"{limits.least} to {limits.most}" if limits.balanced else limits.most,
            "max_total_tokens": limits.max_tokens,
            "max_seq_len": self.encoder.settings["max_seq_len"],
            "branch_range": self.numbering.branch_range,
        }
        return {name: str(value) for name, value in settings.items()}

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple[int, list[list[RowPlan]], dict[str, Any]]]:
        """(place of its first sample in the order of the epoch, its steps, nothing more) of each block."""
        store = self._joined()
        several = len(store) > _PLANNED_TOGETHER  # a block is shuffled by itself
        order = self._mixture.order(store.sizes, seed=f"{self.seed} {epoch}", shuffle=self.shuffle and several)
        for at in range(start, len(order), _PLANNED_TOGETHER):
            samples = [store.planned(sample) for sample in order[at : at + _PLANNED_TOGETHER]]
            yield at, self._plan(store, samples, f"{epoch} {at}", None), {}

    def _read(self, epoch: int, start: int) -> Iterator[tuple[int, list[list[RowPlan]], dict[str, Any]]]:
        """(number of its first record, its steps, the counts before and with it) of each block of a stream."""
        source = self.source.read(start)
        while rows := list(islice(source, self.block_records)):
            before = self.counts.as_dict()
            counts = self.counts if epoch == 0 else DataCounts()
            encoded = (_encode(self.encoder, row, counts) for row in rows)
            store = MemoryStore([sample for sample in encoded if sample is not None])
            samples = [store.planned(sample) for sample in range(len(store))]
            plans = self._plan(store, samples, f"{epoch} {start}", counts)
            yield start, plans, {"counts": before, "counts_with_block": self.counts.as_dict()}
            start = rows[-1].index + 1

    def _plan(
        self, store: SampleStore, samples: list[PlannedSample], block: str, counts: DataCounts | None
    ) -> list[list[RowPlan]]:
        """The steps of a block; the same whenever it is asked for."""
        rng = random.Random(f"{self.seed} {block}")
        if self.shuffle:
            rng.shuffle(samples)
        lost = counts or DataCounts()
        rows = plan_rows(store, samples, self.limits, self.encoder, learn_main=self.learn_main, rng=rng, counts=lost)
        rows = [replace(row, numbers=self.numbering.of_row(row.numbers, rng)) for row in rows]
        if (most := self._longest_short) is not None:
            rows = [part for row in rows for part in row.by_length(most, whole=self._batch.whole_rows)]
        if counts is not None:
            for row in rows:
                row.count(counts)
        kinds = [[row for row in rows if row.is_long == is_long] for is_long in (False, True)]
        steps = [step for kind in kinds if kind for step in self._steps(kind, rng)]
        if self.shuffle and all(kinds):
            rng.shuffle(steps)
        if counts is not None:
            for step, _ in self.planner.joined((step, None) for step in steps):
                for batch in self.planner.micro_batches(step):
                    _count_batch(batch, self._batch, counts)
        return steps

    def _steps(self, rows: list[RowPlan], rng: random.Random) -> list[list[RowPlan]]:
        if self._batch.by_tokens:
            rows = [part for row in rows for part in composer.fitting(row, self._batch)]
        if not self.shuffle:
            return self.planner.steps(rows)
        rng.shuffle(rows)
        if self._batch.by_tokens:
            return self.planner.steps(composer.filled(rows, self._batch, rng))
        window = _SIMILAR_LENGTHS * self.planner.step_size
        steps = []
        for start in range(0, len(rows), window):
            steps += self.planner.steps(sorted(rows[start : start + window], key=lambda row: row.tokens))
        rng.shuffle(steps)
        return steps


@dataclass(frozen=True, slots=True)
class _Dealt:
    """A micro-batch before its tokens are loaded."""

    rows: list[RowPlan]
    spare: RowPlan
    """Where there are no rows, of this one a token is computed that teaches nothing."""
    limits: BatchLimits
    state: dict[str, Any]

    def load(self) -> MicroBatch:
        if not self.rows:
            return MicroBatch([_blank(self.spare)], self.state)
        if not self.limits.by_tokens:
            return MicroBatch([row.load() for row in self.rows], self.state)
        groups = composer.sequences([row.tokens for row in self.rows], self.limits)
        rows = [self.rows[place].load() for group in groups for place in group]
        return MicroBatch(rows, self.state, sequences=[len(group) for group in groups])


def _count_batch(rows: list[RowPlan], limits: BatchLimits, counts: DataCounts) -> None:
    lengths = [row.tokens for row in rows]
    groups = composer.sequences(lengths, limits) if limits.by_tokens else [[place] for place in range(len(rows))]
    width = limits.width(max(sum(lengths[place] for place in group) for group in groups))
    counts.batches += 1
    counts.batch_tokens += sum(lengths)
    counts.padding_tokens += width * len(groups) - sum(lengths)


def _encode(encoder: SampleEncoder, row: SourceRow, counts: DataCounts) -> EncodedSample | None:
    return encoder.encode(parse_sample(row.fields, row.where, row.file), counts)


def _blank(plan: RowPlan) -> TrainingRow:
    """One token without a label: keeps processes in step without a gradient."""
    row = plan.load()
    first = slice(1)
    token = PackedRow(
        input_ids=row.row.input_ids[first], branch_ids=row.row.branch_ids[first], time_ids=row.row.time_ids[first]
    )
    return TrainingRow(token, torch.zeros(1, dtype=torch.bool), row.sources)


def _nothing(name: str, counts: DataCounts) -> str:
    if not counts.records:
        return f"{name} has no records; expected at least one."
    lost = " ".join(counts.notes[:3])
    return (
        f"{name}: none of its {counts.records} records leaves a supervised token; raise --max_seq_len or "
        f"--max_total_tokens. {lost}"
    )
