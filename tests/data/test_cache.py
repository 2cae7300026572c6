"""Encoded data on disk: the same as from the data itself, made once, and whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from parallelmind.data.batches import BatchLimits
from parallelmind.data.cache import SampleCache
from parallelmind.data.dataset import ParallelPretrainDataset, Share
from parallelmind.data.encoder import SampleEncoder
from parallelmind.data.rows import RowLimits
from parallelmind.data.sources import ChainedSource, FilteredSource, JsonlSource, RecordSource
from parallelmind.errors import DataError
from tests.data.test_dataset import LOOSE, RECORDS, TOKENIZER, contents, write
from tests.disks import room_for
from tests.families import char_tokenizer

Encoded = list[str]


def encoder(**limits: Any) -> SampleEncoder:
    return SampleEncoder(limits.pop("tokenizer", TOKENIZER), **({"max_seq_len": 64} | limits))


def data(source: RecordSource, cache: SampleCache | None, **more: Any) -> ParallelPretrainDataset:
    return ParallelPretrainDataset(
        source,
        encoder(),
        limits=RowLimits(most=2),
        batch=BatchLimits(size=4),
        prepare=None if cache is None else cache.prepared,
        **more,
    )


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    return SampleCache(tmp_path / "cache")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """The places of the samples that are encoded, in order."""
    found: Encoded = []
    encode = SampleEncoder.encode

    def noting(self: SampleEncoder, sample: Any, counts: Any) -> Any:
        found.append(sample.where)
        return encode(self, sample, counts)

    monkeypatch.setattr(SampleEncoder, "encode", noting)
    return found


def entries(cache: SampleCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("learn_main", [False, True])
def test_batches_and_counts_are_those_of_data_in_memory(
    learn_main: bool, tmp_path: Path, cache: SampleCache, encoded: Encoded
) -> None:
    rows = [*RECORDS, *LOOSE, {"main": "", "branches": ["x", "y" * 80]}, {"text": "a"}]
    source = write(tmp_path / "d", rows)
    for _ in range(2):
        for share in (Share(), Share(rank=1, world_size=2)):
            in_memory = data(source, None, epochs=2, learn_main=learn_main, share=share)
            expected = list(in_memory)
            del encoded[:]
            stored = data(source, cache, epochs=2, learn_main=learn_main, share=share)
            batches = list(stored)
            assert contents(batches) == contents(expected)
            for one, other in zip(batches, expected, strict=True):
                assert [row.sources for row in one.rows] == [row.sources for row in other.rows]
                assert [row.loss_mask.tolist() for row in one.rows] == [row.loss_mask.tolist() for row in other.rows]
                assert [row.row.branch_ids.tolist() for row in one.rows] == [
                    row.row.branch_ids.tolist() for row in other.rows
                ]
            assert stored.counts == in_memory.counts
            assert stored.counts.cut_branches == 1
            assert stored.largest_row() == in_memory.largest_row()
    assert not encoded  # the first of them made it
    assert len(entries(cache)) == 1


def other_content(path: Path) -> None:
    before = path.stat()
    text = path.read_text().replace("b0.0", "c0.0")
    path.write_text(text)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def with_a_template() -> Any:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


@pytest.mark.parametrize(
    "changed",
    [
        lambda path: (other_content(path), {}),
        lambda path: (None, {"max_seq_len": 63}),
        lambda path: (None, {"sees_main": False}),
        lambda path: (None, {"learn_main": True}),
        lambda path: (None, {"max_model_len": 100}),
        lambda path: (None, {"strict": True}),
        lambda path: (None, {"tokenizer": with_a_template()}),
    ],
)
def test_whatever_decides_about_tokens_makes_another_entry(
    changed: Callable[[Path], tuple[None, dict[str, Any]]], tmp_path: Path, cache: SampleCache
) -> None:
    source = write(tmp_path / "d", RECORDS)
    cache.prepared(source, encoder())
    cache.prepared(JsonlSource(tmp_path / "d"), encoder(tokenizer=char_tokenizer()))  # an equal one
    assert len(entries(cache)) == 1
    _, limits = changed(tmp_path / "d")
    cache.prepared(JsonlSource(tmp_path / "d"), encoder(**limits))
    assert len(entries(cache)) == 2
    cache.prepared(JsonlSource(tmp_path / "d", max_records=3), encoder(**limits))
    kept = FilteredSource(source, lambda index: index > 1, rule="above 1")
    assert cache.prepared(kept, encoder(**limits)) is not None
    assert len(entries(cache)) == 4
    assert cache.prepared(FilteredSource(source, lambda index: index > 1), encoder()) is None


def test_a_file_that_was_moved_is_the_same_and_messages_name_its_new_place(
    tmp_path: Path, cache: SampleCache, encoded: Encoded
) -> None:
    list(data(write(tmp_path / "d", RECORDS), cache))
    (tmp_path / "d").rename(tmp_path / "other")
    del encoded[:]
    batches = list(data(JsonlSource(tmp_path / "other"), cache))
    assert not encoded
    assert {source.split(" line ")[0] for batch in batches for row in batch.rows for source in row.sources} == {
        str(tmp_path / "other")
    }


def test_ended_while_it_is_made_it_is_made_again(
    tmp_path: Path, cache: SampleCache, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "d", RECORDS)
    expected = contents(list(data(source, None)))
    with monkeypatch.context() as patch:
        patch.setattr("parallelmind.data.cache.shutil.rmtree", lambda *args, **flags: None)  # a kill cleans nothing up
        patch.setattr("parallelmind.data.encoding.batch_of", lambda samples: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(data(source, cache))
    [unfinished] = entries(cache)
    assert unfinished.endswith(".unfinished")
    assert contents(list(data(source, cache))) == expected
    [entry] = entries(cache)
    for broken in ("samples.arrow", "about.json"):
        path = cache.folder / entry / broken
        path.write_bytes(path.read_bytes()[:-9])  # as a disk may leave it
        del encoded[:]
        assert contents(list(data(source, cache))) == expected
        assert len(encoded) == len(RECORDS)
        assert entries(cache) == [entry]


def test_one_of_several_processes_makes_it(tmp_path: Path, cache: SampleCache, encoded: Encoded) -> None:
    source = write(tmp_path / "d", RECORDS)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(SampleCache(cache.folder).prepared(source, encoder())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store) for store, _ in found] == [len(RECORDS)] * 4
    assert len(encoded) == len(RECORDS)


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path: Path, cache: SampleCache) -> None:
    source = write(tmp_path / "d", RECORDS)
    with room_for(500), pytest.raises(DataError, match=r"encoded data of .*d cannot be written .*--data_cache"):
        list(data(source, cache))
    assert entries(cache) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=rf"{blocked}.* cannot be written .*--data_cache another folder"):
        SampleCache(blocked).prepared(source, encoder())


def test_a_bad_row_is_named_and_nothing_stays(tmp_path: Path, cache: SampleCache) -> None:
    source = write(tmp_path / "d", [*RECORDS, {"other": 1}])
    with pytest.raises(DataError, match=f"d line {len(RECORDS) + 1} has none of the fields"):
        list(data(source, cache))
    assert entries(cache) == []


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_loaders_in_several_processes_give_the_same_batches(
    workers: int, stored: bool, tmp_path: Path, cache: SampleCache
) -> None:
    source = write(tmp_path / "d", RECORDS)
    expected = list(data(source, None, epochs=2))
    made = data(source, cache if stored else None, epochs=2)
    made.load_state_dict(expected[4].state)
    made.store()
    loaded = list(DataLoader(made, batch_size=None, num_workers=workers, collate_fn=lambda batch: batch))
    assert contents(loaded) == contents(expected[5:])
    assert [batch.state for batch in loaded] == [batch.state for batch in expected[5:]]
    assert [batch.last for batch in loaded] == [False] * (len(loaded) - 1) + [True]


def test_several_files_are_stored_each_by_itself(tmp_path: Path, cache: SampleCache, encoded: Encoded) -> None:
    first, second = write(tmp_path / "a", RECORDS), write(tmp_path / "b", LOOSE)
    together = data(ChainedSource([first, second]), cache)
    whole = data(write(tmp_path / "c", RECORDS + LOOSE), None)
    assert contents(list(together)) == contents(list(whole))
    assert together.counts == whole.counts
    assert len(entries(cache)) == 2
    del encoded[:]
    list(data(ChainedSource([second, first]), cache))
    assert not encoded


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(tmp_path: Path, cache: SampleCache) -> None:
    source = write(tmp_path / "d", RECORDS * 100)
    bad = write(tmp_path / "bad", [*RECORDS * 100, {"main": 3, "branches": ["x"]}])
    both = SampleCache(tmp_path / "both", processes=2)
    for one in (cache, both):
        list(data(source, one))
        with pytest.raises(DataError, match=r'bad line 2301: "main" is a number'):
            list(data(bad, one))
    [alone], [shared] = (list(one.folder.glob("*/samples.arrow")) for one in (cache, both))
    assert alone.read_bytes() == shared.read_bytes()
    about = [json.loads(path.with_name("about.json").read_text()) for path in (alone, shared)]
    assert about[0] == about[1]
    shutil.rmtree(both.folder)
