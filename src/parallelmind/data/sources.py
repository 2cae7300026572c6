"""Where training rows come from: JSONL files and Hugging Face datasets, read in order, from any place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from parallelmind.errors import DataError, SettingsError, first_line
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of data as it was found."""

    index: int
    """Number of the row in its source, from 0."""
    where: str
    """File and line, for messages."""
    fields: Mapping[str, Any]
    file: Path | None = None
    """The file that it is a line of."""


class RecordSource(Protocol):
    """Rows in an order that is the same every time."""

    name: str

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        """The rows from number `start` on. Raises DataError for a row that is not an object."""


class JsonlSource:
    """The rows of a JSONL file."""

    def __init__(self, path: Path, *, max_records: int | None = None):
        self.name = str(path)
        self._path = path
        self._max_records = max_records

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        for line in read_lines(self._path, max_records=self._max_records):
            if line.index < start:
                continue
            where = f"{self._path} line {line.number}"
            if line.too_long:
                raise DataError(f"{where} has {line.size:,} bytes, more than one record may have; split it.")
            yield SourceRow(line.index, where, load_object(line.content, where), self._path)


class HubSource:
    """The rows of a Hugging Face dataset: a hub name, a folder of data files, or a folder written by `save_to_disk`.

    Raises:
        SettingsError: the package `datasets` is missing, or the dataset, its subset or its split is not found.
    """

    def __init__(self, name: str, subset: str | None, *, split: str, streaming: bool, max_records: int | None = None):
        self.name = name if subset is None else f"{name} ({subset})"
        self._max_records = max_records
        self._dataset = _load(name, subset, split, streaming)

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        dataset = self._dataset.skip(start) if start else self._dataset
        count = None if self._max_records is None else max(0, self._max_records - start)
        for index, fields in enumerate(islice(iter(dataset), count), start=start):
            yield SourceRow(index, f"{self.name} row {index}", _without_nulls(fields))


class FilteredSource:
    """The rows of a source whose number `keep` accepts."""

    def __init__(self, source: RecordSource, keep: Callable[[int], bool]):
        self.name = source.name
        self._source = source
        self._keep = keep

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        return (row for row in self._source.read(start) if self._keep(row.index))


def _load(name: str, subset: str | None, split: str, streaming: bool) -> Any:
    try:
        from datasets import DatasetDict, load_dataset, load_from_disk
    except ImportError as error:
        raise SettingsError(
            "--hf_dataset needs the package datasets, which is not installed; run: pip install 'parallelmind[train]'"
        ) from error
    folder = Path(name)
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = load_from_disk(name)
            dataset = loaded[split] if isinstance(loaded, DatasetDict) else loaded
            return dataset.to_iterable_dataset() if streaming else dataset
        return load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:  # datasets raises many kinds: not found, network, wrong subset, unreadable files
        raise SettingsError(
            f"--hf_dataset {name}, subset {subset or 'default'}, split {split}: not loadable ({first_line(error)}). "
            "Check the spelling, --hf_subset, --hf_split and the network, or give a folder."
        ) from error


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow gives every row every column, and every object every field: absent ones are null."""
    return {key: _clean(value) for key, value in fields.items() if value is not None}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_nulls(value)
    return [_clean(item) for item in value] if isinstance(value, list) else value
