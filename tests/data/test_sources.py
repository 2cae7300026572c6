"""Files of several kinds hold the same rows; what is not there is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from parallelmind.data.sources import ChainedSource, HubSource, RecordSource, file_source
from parallelmind.errors import DataError, SettingsError
from tests.data.test_dataset import LOOSE, RECORDS, contents, dataset, write

PAIRS = [{"prompt": f"q{n}", "completion": f"a, {n}\nb"} for n in range(700)]


def files_of(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    paths = [folder / f"d.{kind}" for kind in ("jsonl", "json", "csv", "tsv", "parquet")]
    write(paths[0], rows)
    paths[1].write_text(json.dumps(rows, indent=1))
    for path, delimiter in ((paths[2], ","), (paths[3], "\t")):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), paths[4], row_group_size=300)
    return paths


def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path) -> None:
    for path in files_of(tmp_path, PAIRS):
        source = file_source(path)
        assert [row.fields for row in source.read()] == PAIRS
        assert [row.index for row in source.read(650)] == list(range(650, 700))
        assert next(row.fields for row in source.read(302)) == PAIRS[302]
        assert [row.index for row in file_source(path, max_records=305).read(303)] == [303, 304]
        [first] = [row for row in source.read(1) if row.index == 1]
        assert source.where(first.number) == first.where
        assert str(path) in first.where
    assert len({file_source(path).identity() for path in files_of(tmp_path, PAIRS)}) == 5


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    """Where a row lacks a field, Arrow has null."""
    rows = [*RECORDS, *LOOSE]
    path = tmp_path / "d.parquet"
    parquet.write_table(
        pa.Table.from_pylist([{"main": None, "branches": None, "text": None} | row for row in rows]), path
    )
    expected = contents(list(dataset(write(tmp_path / "d", rows))))
    assert contents(list(dataset(file_source(path)))) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.parquet", b"PAR1 no", r"d\.parquet: not readable as Parquet"),
        ("d.csv", b"prompt,completion\na\n", r"d\.csv line 2 has 1 cells, the header has 2"),
        (
            "d.csv",
            b"prompt,completion\na,caf\xe9\n",
            r'd\.csv line 2: "completion" is not UTF-8 at character 4; save it',
        ),
        ("d.json", b'[{"prompt": "a", "completion": "b"}, 3]', r"d\.json line 1 is a number \(3\); expected an object"),
    ],
)
def test_broken_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(file_source(tmp_path / name).read())


def test_several_files_are_one_stream(tmp_path: Path) -> None:
    sources: list[RecordSource] = [write(tmp_path / "a", RECORDS), write(tmp_path / "b", LOOSE)]
    chained, whole = ChainedSource(sources), write(tmp_path / "c", RECORDS + LOOSE)
    for start in (0, 20, 23, 26):
        found = list(chained.read(start))
        assert [(row.index, row.fields) for row in found] == [(row.index, row.fields) for row in whole.read(start)]
    assert found[0].where == f"{tmp_path / 'b'} line 4"
    stream, other = (dataset(source, block_records=7, epochs=2) for source in (chained, whole))
    assert contents(list(stream)) == contents(list(other))


def test_a_split_is_honoured_or_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    Dataset.from_list(PAIRS[:3]).save_to_disk(folder)
    assert len(list(HubSource(folder, None, split="train", streaming=False).read())) == 3
    for split in ("test", "train[:1]"):
        with pytest.raises(SettingsError, match=rf"--hf_split {split[:5]}.*holds one dataset, without splits; leave"):
            HubSource(folder, None, split=split, streaming=False)
    from datasets import Split

    named = str(tmp_path / "named")
    Dataset.from_list(PAIRS[:3], split=Split.VALIDATION).save_to_disk(named)
    assert len(list(HubSource(named, None, split="validation", streaming=False).read())) == 3
    with pytest.raises(SettingsError, match="holds the split validation alone"):
        HubSource(named, None, split="test", streaming=False)


def test_a_dataset_tells_other_content(tmp_path: Path) -> None:
    found = []
    for name, rows in (("a", PAIRS[:3]), ("b", PAIRS[:3]), ("c", PAIRS[1:4])):
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
        found.append(HubSource(str(tmp_path / name), None, split="train", streaming=False).identity())
    assert found[0] is not None
    assert found[0] != found[2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_made_alike_of_other_things_is_another_one(streaming: bool, tmp_path: Path) -> None:
    """As by the same `map` with a function that reads a file: what the package calls it is the same."""
    found = []
    for name, rows in (("a", PAIRS[:3]), ("b", PAIRS[1:4]), ("moved", PAIRS[:3])):
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
        state = tmp_path / name / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"_fingerprint": "0123456789abcdef"}))
        found.append(HubSource(str(tmp_path / name), None, split="train", streaming=streaming).identity())
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    batches = list(dataset(write(tmp_path / "d", RECORDS)))
    same = dataset(write(tmp_path / "moved", RECORDS))
    same.load_state_dict(batches[2].state)
    assert contents(list(same)) == contents(batches[3:])
    other = dataset(write(tmp_path / "d", RECORDS[1:] + RECORDS[:1]))  # of the same size
    with pytest.raises(SettingsError, match=r"on other data than .*d holds now.*--load_lora"):
        other.load_state_dict(batches[2].state)
