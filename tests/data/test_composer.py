"""Batches of a number of tokens: full, hardly padded, nothing lost, nothing twice, the same again from any state."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parallelmind.data import composer
from parallelmind.data.batches import BatchLimits
from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator
from parallelmind.data.dataset import ParallelPretrainDataset, Share
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import RecordSource
from parallelmind.errors import DataError
from tests.data.test_dataset import RECORDS, TOKENIZER, contents, of_step, write


def composed(source: RecordSource, size: int, *, most: int = 4, **more: Any) -> ParallelPretrainDataset:
    encoder = SampleEncoder(TOKENIZER, max_seq_len=more.pop("max_seq_len", 2048))
    shape = {name: more.pop(name) for name in ("whole_rows", "multiple_of") if name in more}
    limits = RowLimits(most=most, max_tokens=more.pop("max_tokens", 0))
    batch = BatchLimits(size=size, by_tokens=True, **shape)
    return ParallelPretrainDataset(source, encoder, limits=limits, batch=batch, **more)


def lognormal(path: Path, count: int) -> RecordSource:
    """Mains and branches as long as texts are: most short, some very long."""
    rng = random.Random(7)

    def text(mean: float) -> str:
        return "x" * max(1, min(900, int(rng.lognormvariate(mean, 1.0))))

    return write(
        path, [{"main": text(4), "branches": [text(2.5) for _ in range(rng.randint(1, 6))]} for _ in range(count)]
    )


@pytest.mark.parametrize("multiple_of", [1, 128])
@pytest.mark.parametrize("more", [{}, {"block_records": 300}, {"shuffle": False}], ids=str)
def test_batches_are_full_and_hardly_padded(multiple_of: int, more: dict[str, Any], tmp_path: Path) -> None:
    size = 4096
    data = composed(lognormal(tmp_path / "d", 900), size, multiple_of=multiple_of, **more)
    batches = list(data)
    collate = ParallelPretrainCollator(0, pad_to_multiple_of=multiple_of)
    found = [collate(batch) for batch in batches]
    assert max(one["input_ids"].numel() for one in found) <= size
    useful, computed = (sum(getattr(one["info"], name) for one in found) for name in ("useful_tokens", "padded_tokens"))
    assert 1 - useful / computed < 0.05
    assert data.counts.padding == pytest.approx(1 - useful / computed, abs=0.01)
    if "shuffle" not in more:
        assert useful / (size * len(batches)) > 0.95
    assert (data.counts.batch_tokens, data.counts.batches) == (useful, len(batches))
    assert max(len(batch.rows) for batch in batches) > 10


@pytest.mark.parametrize("more", [{}, {"block_records": 6}, {"shuffle": False}], ids=str)
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (3, 2)])
def test_every_branch_once_an_epoch_and_as_many_batches_in_every_process(
    world_size: int, accumulation: int, more: dict[str, Any], tmp_path: Path
) -> None:
    """Rows that are larger than a batch are cut, each part with main and with the numbers of its branches."""
    source = write(tmp_path / "d", RECORDS)
    shares = [Share(rank=rank, world_size=world_size, accumulation=accumulation) for rank in range(world_size)]
    parts = [composed(source, 12, learn_main=True, epochs=2, share=share, **more) for share in shares]
    batches = [list(part) for part in parts]
    assert len({len(one) for one in batches}) == 1
    assert len(batches[0]) % accumulation == 0
    if "block_records" not in more:
        assert parts[0].steps(2) == len(batches[0]) // accumulation
    everything = list(composed(source, 10_000, learn_main=True, **more))
    for epoch in (0, 1):
        found = [batch for one in batches for batch in one if batch.state["epoch"] == epoch]
        assert of_step(found) == of_step(everything)
        assert all(sum(map(len, batch.rows)) <= 12 for batch in found)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("world_size", [1, 3])
def test_any_state_continues_exactly(block: int | None, world_size: int, tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS)
    for rank in range(world_size):
        share = Share(rank=rank, world_size=world_size)
        batches = list(composed(source, 16, epochs=3, block_records=block, share=share))
        for at in random.sample(range(len(batches) - 1), 4):
            rest = composed(source, 16, epochs=3, block_records=block, share=share)
            rest.load_state_dict(json.loads(json.dumps(batches[at].state)))
            assert contents(list(rest)) == contents(batches[at + 1 :])


def test_rows_whose_branches_see_one_another_stay_whole(tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS)
    rows = [row for batch in composed(source, 40, most=5, whole_rows=True) for row in batch.rows]
    alone = [row for batch in composed(source, 10_000, most=5, whole_rows=True) for row in batch.rows]
    assert Counter(map(str, (row.row.input_ids.tolist() for row in rows))) == Counter(
        map(str, (row.row.input_ids.tolist() for row in alone))
    )
    with pytest.raises(DataError, match=r"d line \d+: a row of \d branches, which see one another, has \d+ tokens"):
        list(composed(source, 20, most=5, whole_rows=True))


def test_what_is_larger_than_a_batch_is_named(tmp_path: Path) -> None:
    rows = [{"main": "m" * 6, "branches": ["a", "b" * 9]}]
    source = write(tmp_path / "d", rows)
    message = (
        r'd line 1: "branches"\[1\] has 10 tokens and does not fit beside a main of 6 into --max_tokens_per_batch 12; '
        r"raise it to at least 16, or lower --max_seq_len"
    )
    with pytest.raises(DataError, match=message):
        list(composed(source, 12))
    dropping = composed(source, 12, max_tokens=12)
    assert [len(row) for batch in dropping for row in batch.rows] == [8]
    assert dropping.counts.dropped_branches == 1
    assert [len(row) for batch in composed(source, 12, max_seq_len=6) for row in batch.rows] == [8, 12]
    with pytest.raises(DataError, match="d line 1 has 10 tokens and does not fit into --max_tokens_per_batch 8"):
        list(composed(write(tmp_path / "d", [{"text": "b" * 9}]), 8))


def test_sequences_of_about_the_same_length() -> None:
    limits = BatchLimits(size=100, by_tokens=True)
    assert composer.sequences([50, 30, 20], limits) == [[0], [1, 2]]
    assert composer.sequences([60, 20], limits) == [[0, 1]]
    assert composer.sequences([25, 25, 25, 25], limits) == [[0], [1], [2], [3]]
    assert composer.sequences([25] * 4, BatchLimits(size=128, by_tokens=True, multiple_of=128)) == [[0, 1, 2, 3]]
    for seed in range(50):
        lengths = [random.Random(seed).randint(1, 30) for _ in range(random.Random(seed).randint(1, 30))]
        whole = BatchLimits(size=sum(lengths), by_tokens=True)
        found = composer.sequences(lengths, whole)
        assert sorted(place for one in found for place in one) == list(range(len(lengths)))
        longest = max(sum(lengths[place] for place in one) for one in found)
        assert longest * len(found) <= 1.021 * sum(lengths)


def test_an_unfilled_place_of_a_step_teaches_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "d", RECORDS[:2])
    share = Share(rank=2, world_size=3)
    [batch] = composed(source, 100, share=share)
    assert isinstance(batch, MicroBatch)
    assert [row.loss_mask.tolist() for row in batch.rows] == [[False]]
