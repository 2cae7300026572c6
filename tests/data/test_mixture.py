"""How often the samples of each file come in an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from parallelmind.data.dataset import ParallelPretrainDataset
from parallelmind.data.mixture import Mixture
from parallelmind.data.sources import ChainedSource
from tests.data.test_dataset import TOKENIZER, contents, dataset, write


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [
        ([10, 30], (), [10, 30]),
        ([10, 30], (1, 1), [20, 20]),
        ([10, 30], (0.7, 0.3), [28, 12]),
        ([10, 30], (70, 30), [28, 12]),
        ([3, 3, 4], (1, 1, 1), [4, 3, 3]),
        ([10, 0], (1, 9), [10, 0]),
    ],
)
def test_shares_are_those_of_the_weights(sizes: list[int], weights: tuple[float, ...], shares: list[int]) -> None:
    assert Mixture(weights).shares(sizes) == shares


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_file_is_taken_whole_as_often_as_it_fits_in(shuffle: bool) -> None:
    orders = [Mixture((0.7, 0.3)).order([10, 30], seed=f"42 {epoch}", shuffle=shuffle) for epoch in (0, 1)]
    for order in orders:
        found = Counter(order)
        assert len(order) == 40
        assert {found[sample] for sample in range(10)} == {2, 3}
        assert sum(found[sample] for sample in range(10)) == 28
        assert {found[sample] for sample in range(10, 40)} == {0, 1}
    assert set(orders[0]) != set(orders[1])
    assert Mixture((0.7, 0.3)).order([10, 30], seed="42 0", shuffle=shuffle) == orders[0]
    assert (min(orders[0][28:]) >= 10) != shuffle


def texts(data: ParallelPretrainDataset, epoch: int) -> Counter[str]:
    return Counter(
        TOKENIZER.decode(ids[:1]) for batch in data if batch.state["epoch"] == epoch for [ids] in contents([batch])
    )


def test_an_epoch_of_weighted_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [write(tmp_path / name, [{"text": name * 3}] * count) for name, count in (("a", 10), ("b", 30))]
    data = dataset(ChainedSource(files), most=1, size=1, mixture=Mixture((0.7, 0.3)), epochs=2)
    for epoch in (0, 1):
        assert texts(data, epoch) == {"a": 28, "b": 12}
    assert data.steps(2) == 80
    batches = list(data)
    rest = dataset(ChainedSource(files), most=1, size=1, mixture=Mixture((0.7, 0.3)), epochs=2)
    rest.load_state_dict(batches[50].state)
    assert contents(list(rest)) == contents(batches[51:])
    assert not caplog.records
    other = dataset(ChainedSource(files), most=1, size=1, mixture=Mixture((0.6, 0.4)), epochs=2, seed=7)
    other.load_state_dict(batches[50].state)
    assert "(seed 7 instead of 42, data_weights 0.6 0.4 instead of 0.7 0.3): of this pass" in caplog.text


def test_a_file_without_records_is_named(tmp_path: Path) -> None:
    files = [write(tmp_path / name, rows) for name, rows in (("a", [{"text": "aaa"}]), ("b", []))]
    data = dataset(ChainedSource(files))
    assert len(data.store()) == 1
    assert data.counts.notes == [f"{tmp_path / 'b'}: no record of it is used."]


def test_weights_of_any_size() -> None:
    assert Mixture((1e308, 1e308)).shares([3, 1]) == [2, 2]
    assert Mixture((5e-324, 5e-324)).shares([3, 1]) == [2, 2]
