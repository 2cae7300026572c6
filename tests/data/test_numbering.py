"""The numbers of a training row's branches."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from parallelmind.data.batches import BatchLimits
from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.numbering import Numbering
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import JsonlSource
from tests.families import char_tokenizer


def test_drawn_numbers_differ_ascend_and_cover_the_range_evenly() -> None:
    rng, numbering = random.Random(0), Numbering(branch_range=16)
    seen: Counter[int] = Counter()
    for _ in range(2000):
        numbers = list(numbering.of_row([1, 2, 3, 4], rng))
        assert numbers == sorted(set(numbers))
        seen.update(numbers)
    assert sorted(seen) == list(range(1, 17))
    assert max(seen.values()) < 1.3 * min(seen.values())


def test_a_row_as_large_as_the_range_is_numbered_in_order() -> None:
    assert Numbering(branch_range=3).of_row([7, 8, 9], random.Random(0)) == [1, 2, 3]


def test_numbers_of_the_record_stay_without_a_range() -> None:
    assert Numbering().of_row([4, 9], random.Random(0)) == [4, 9]


def test_what_is_not_drawn_is_numbered_as_inference_does() -> None:
    inference = Numbering(branch_range=4, drawn=False)
    assert list(inference.of_row([3, 4, 5], random.Random(0))) == [3, 4, 1]
    assert list(inference.of_row([1, 2, 5], random.Random(0))) == [1, 2, 3]  # 3 and 4 were dropped from the record


def stream(path: Path, **more: Any) -> ParallelPretrainDataset:
    encoder = SampleEncoder(char_tokenizer(), max_seq_len=64)
    limits = RowLimits(most=3, balanced=True)
    return ParallelPretrainDataset(
        JsonlSource(path), encoder, limits=limits, batch=BatchLimits(size=6), epochs=2, **more
    )


def test_numbers_are_the_same_whenever_the_stream_is_asked_for_them(tmp_path: Path) -> None:
    """Another epoch draws others; a stream that goes on from a saved state draws what it would have drawn."""
    data = tmp_path / "data.jsonl"
    records = [{"main": f"m{n}", "branches": [f"b{n}.{k}" for k in range(1 + n % 5)]} for n in range(20)]
    loose = [{"text": f"text {n}"} for n in range(7)]
    data.write_text("".join(json.dumps(row) + "\n" for row in records + loose))

    def numbers(dataset: ParallelPretrainDataset) -> list[list[list[int]]]:
        return [[sorted({*row.row.branch_ids.tolist()} - {0}) for row in micro.rows] for micro in dataset]

    for more in ({}, {"block_records": 6}):
        whole = stream(data, numbering=Numbering(branch_range=32), **more)
        micros = list(whole)
        found = numbers(stream(data, numbering=Numbering(branch_range=32), **more))
        assert found == [[sorted({*row.row.branch_ids.tolist()} - {0}) for row in micro.rows] for micro in micros]
        assert max(number for micro in found for row in micro for number in row) > 16
        rest = stream(data, numbering=Numbering(branch_range=32), **more)
        rest.load_state_dict(micros[3].state)
        assert numbers(rest) == found[4:]
        half = len(found) // 2
        assert found[:half] != found[half:]


def test_the_largest_row_is_that_of_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    for rows, largest in (
        ([{"main": "m", "branches": ["a"]}] * 4, 1),
        ([{"main": "m", "branches": ["a", "b"]}, {"main": "m", "branches": ["a"]}], 2),
        ([{"main": "m", "branches": ["a"] * 9}], 3),
        ([{"text": "a"}] * 2, 2),
        ([{"text": "a"}] * 9, 3),
    ):
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert stream(data).largest_row() == largest
