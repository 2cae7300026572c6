"""From samples to rows: the branches of a record are split over rows, loose samples share rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from parallelmind.data.batches import RowPlan
from parallelmind.data.encoder import DataCounts, SampleEncoder
from parallelmind.data.planned import PlannedSample
from parallelmind.data.rows import RowLimits, split_rows
from parallelmind.data.store import SampleStore


def plan_rows(
    store: SampleStore,
    samples: Sequence[PlannedSample],
    limits: RowLimits,
    encoder: SampleEncoder,
    *,
    learn_main: bool,
    rng: random.Random,
    counts: DataCounts,
) -> list[RowPlan]:
    """The rows of some samples, in their order: first those of records, then those of loose samples.

    Branches that fit in no row are counted, or an error, as the encoder has it.
    """
    rows: list[RowPlan] = []
    for sample in samples:
        if not sample.loose:
            rows += _record_rows(store, sample, limits, encoder, learn_main, counts)
    loose = [sample for sample in samples if sample.loose]
    return rows + _loose_rows(store, loose, limits, encoder, rng, counts)


def _record_rows(
    store: SampleStore,
    sample: PlannedSample,
    limits: RowLimits,
    encoder: SampleEncoder,
    learn_main: bool,
    counts: DataCounts,
) -> list[RowPlan]:
    lengths = [branch.tokens for branch in sample.branches]
    split = split_rows(lengths, limits, main_tokens=sample.main_tokens)
    if lost := sorted(set(range(len(lengths))) - {place for row in split for place in row}):
        encoder.lost_rows(sample, lost, limits.max_tokens, counts)
    rows: list[RowPlan] = []
    for places in split:
        branches = [sample.branches[place] for place in places]
        numbers = [branch.number for branch in branches]
        rows.append(RowPlan(store, sample.main_tokens, branches, numbers, learn_main and not rows, (sample.where,)))
    return rows


def _loose_rows(
    store: SampleStore,
    samples: Sequence[PlannedSample],
    limits: RowLimits,
    encoder: SampleEncoder,
    rng: random.Random,
    counts: DataCounts,
) -> list[RowPlan]:
    groups: list[list[PlannedSample]] = []
    most = room = 0
    for sample in samples:
        length = sample.branches[0].tokens
        if limits.max_tokens and length > limits.max_tokens:
            encoder.lost_rows(sample, [0], limits.max_tokens, counts)
            continue
        if not groups or len(groups[-1]) == most or (limits.max_tokens and length > room):
            groups.append([])
            most = rng.randint(limits.least, limits.most) if limits.balanced else limits.most
            room = limits.max_tokens
        groups[-1].append(sample)
        room -= length
    return [
        RowPlan(
            store,
            main_tokens=0,
            branches=[sample.branches[0] for sample in group],
            numbers=range(1, len(group) + 1),
            learn_main=False,
            sources=tuple(sample.where for sample in group),
        )
        for group in groups
    ]
