"""Where training rows come from: files and Hugging Face datasets, read in order, from any place on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from parallelmind.data.sft_files import container_of, read_rows
from parallelmind.errors import DataError, SettingsError, first_line
from parallelmind.io.fingerprints import fingerprint_of_content, fingerprint_of_tree
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object, show_value

_PARQUET_ROWS = 256
"""Rows that are read together."""
_DEFAULT_SPLIT = "train"
"""What --hf_split is where it is not given."""


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
    number: int = 0
    """The number that messages have: its line, or its row."""


class RecordSource(Protocol):
    """Rows in an order that is the same every time."""

    name: str

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        """The rows from number `start` on. Raises DataError for a row that is not an object."""

    def where(self, number: int) -> str:
        """The place of the row with this `SourceRow.number`, for messages."""

    def identity(self) -> str | None:
        """Another one for other rows; None: it cannot be told."""

    def parts(self) -> Sequence[RecordSource]:
        """The sources that it is put together from."""


class FileSource(ABC):
    """The rows of one file."""

    kind: ClassVar[str]

    def __init__(self, path: Path, *, max_records: int | None = None):
        self.name = str(path)
        self._path = path
        self._max_records = max_records

    @abstractmethod
    def read(self, start: int = 0) -> Iterator[SourceRow]:
        """The rows from number `start` on."""

    def where(self, number: int) -> str:
        return f"{self._path} line {number}"

    def identity(self) -> str | None:
        return f"{self.kind} {fingerprint_of_content(self._path)} {self._max_records}"

    def parts(self) -> Sequence[RecordSource]:
        return (self,)

    def _row(self, index: int, number: int, fields: Mapping[str, Any]) -> SourceRow:
        return SourceRow(index, self.where(number), fields, self._path, number)


class JsonlSource(FileSource):
    """The rows of a JSONL file."""

    kind = "jsonl"

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        for line in read_lines(self._path, max_records=self._max_records):
            if line.index < start:
                continue
            where = self.where(line.number)
            if line.too_long:
                raise DataError(f"{where} has {line.size:,} bytes, more than one record may have; split it.")
            yield self._row(line.index, line.number, load_object(line.content, where))


class TableSource(FileSource):
    """The rows of a CSV or TSV file with a header, or of a file with one JSON list."""

    kind = "table"

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        container = container_of(self._path)
        rows = read_rows(self._path, container)
        for index, row in enumerate(islice(rows, self._max_records)):
            if index < start:
                continue
            if row.error is not None:
                raise DataError(f"{self.where(row.line)} {row.error}; correct it.")
            if not isinstance(row.value, dict):
                raise DataError(f"{self.where(row.line)} is {show_value(row.value)}; expected an object with fields.")
            if container != "json_list":
                _check_cells(row.value, self.where(row.line))
            yield self._row(index, row.line, row.value)


def _check_cells(row: Mapping[str, str], where: str) -> None:
    """Bytes of a table that are not UTF-8 were read as half of a surrogate pair."""
    for column, cell in row.items():
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f'{where}: "{column}" is not UTF-8 at character {error.start + 1}; save it as UTF-8.'
            ) from None


class ParquetSource(FileSource):
    """The rows of a Parquet file, whose columns are the fields.

    Raises:
        SettingsError: the package pyarrow is missing.
    """

    kind = "parquet"

    def __init__(self, path: Path, *, max_records: int | None = None):
        super().__init__(path, max_records=max_records)
        if find_spec("pyarrow") is None:
            raise SettingsError(
                f"{path}: Parquet needs the package pyarrow, which is not installed; run: pip install "
                "'parallelmind[train]'"
            )

    def where(self, number: int) -> str:
        return f"{self._path} row {number}"

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(self._path) as file:
                first = 0
                groups: list[int] = []
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if groups or first + rows > start:
                        groups.append(group)
                    else:
                        first += rows
                found = (row for batch in file.iter_batches(_PARQUET_ROWS, groups) for row in batch.to_pylist())
                for index, fields in enumerate(found, start=first):
                    if self._max_records is not None and index >= self._max_records:
                        return
                    if index >= start:
                        yield self._row(index, index, _without_nulls(fields))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self._path}: not readable as Parquet ({first_line(error)}); write it anew.") from error


def file_source(path: Path, *, max_records: int | None = None) -> RecordSource:
    """The rows of a file, by its name: Parquet, CSV, TSV, a JSON list, else JSONL.

    Raises:
        SettingsError: a package is missing.
        DataError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return ParquetSource(path, max_records=max_records)
    if suffix in (".csv", ".tsv") or (suffix == ".json" and container_of(path) == "json_list"):
        return TableSource(path, max_records=max_records)
    return JsonlSource(path, max_records=max_records)


class HubSource:
    """The rows of a Hugging Face dataset: a hub name, a folder of data files, or a folder written by `save_to_disk`.

    Raises:
        SettingsError: the package `datasets` is missing, or the dataset, its subset or its split is not found.
    """

    def __init__(self, name: str, subset: str | None, *, split: str, streaming: bool, max_records: int | None = None):
        self.name = name if subset is None else f"{name} ({subset})"
        self._max_records = max_records
        self._dataset = _load(name, subset, split, streaming)
        self._folder = Path(name) if Path(name).is_dir() else None
        self._part = f"{subset} {split}"

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        dataset = self._dataset.skip(start) if start else self._dataset
        count = None if self._max_records is None else max(0, self._max_records - start)
        for index, fields in enumerate(islice(iter(dataset), count), start=start):
            yield SourceRow(index, self.where(index), _without_nulls(fields), number=index)

    def where(self, number: int) -> str:
        return f"{self.name} row {number}"

    def identity(self) -> str | None:
        if self._folder is not None:  # the package's own says how a dataset was made, which may give other rows today
            return f"folder {fingerprint_of_tree(self._folder)} {self._part} {self._max_records}"
        fingerprint = getattr(self._dataset, "_fingerprint", None)  # of a stream there is none
        return fingerprint and f"dataset {fingerprint} {self._max_records}"

    def parts(self) -> Sequence[RecordSource]:
        return (self,)


class FilteredSource:
    """The rows of one source whose number `keep` accepts.

    Args:
        rule: another one for another `keep`; None: it cannot be told.
    """

    def __init__(self, source: RecordSource, keep: Callable[[int], bool], *, rule: str | None = None):
        self.name = source.name
        self._source = source
        self._keep = keep
        self._rule = rule

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        return (row for row in self._source.read(start) if self._keep(row.index))

    def where(self, number: int) -> str:
        return self._source.where(number)

    def identity(self) -> str | None:
        whole = self._source.identity()
        return None if whole is None or self._rule is None else f"{whole} {self._rule}"

    def parts(self) -> Sequence[RecordSource]:
        return (self,)


class ChainedSource:
    """The rows of several sources, one after the other."""

    def __init__(self, sources: Sequence[RecordSource]):
        self.name = ", ".join(source.name for source in sources)
        self._sources = sources

    def read(self, start: int = 0) -> Iterator[SourceRow]:
        first = 0
        for source in self._sources:
            rows = 0
            for row in source.read():
                rows = row.index + 1
                if first + row.index >= start:
                    yield replace(row, index=first + row.index)
            first += rows

    def where(self, number: int) -> str:
        raise NotImplementedError("rows are numbered within their source")

    def identity(self) -> str | None:
        found = [source.identity() for source in self._sources]
        return None if None in found else " + ".join(map(str, found))

    def parts(self) -> Sequence[RecordSource]:
        return [part for source in self._sources for part in source.parts()]


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
            if not isinstance(loaded, DatasetDict):
                _check_split(name, split, loaded.split)
            dataset = loaded[split] if isinstance(loaded, DatasetDict) else loaded
            return dataset.to_iterable_dataset() if streaming else dataset
        return load_dataset(name, subset, split=split, streaming=streaming)
    except SettingsError:
        raise
    except Exception as error:  # datasets raises many kinds: not found, network, wrong subset, unreadable files
        raise SettingsError(
            f"--hf_dataset {name}, subset {subset or 'default'}, split {split}: not loadable ({first_line(error)}). "
            "Check the spelling, --hf_subset, --hf_split and the network, or give a folder."
        ) from error


def _check_split(name: str, asked: str, held: object) -> None:
    """A folder without splits, or with one alone that it was saved from, is no other split."""
    if asked not in (_DEFAULT_SPLIT, str(held)):
        of_what = f"the split {held} alone" if held else "one dataset, without splits"
        raise SettingsError(
            f"--hf_split {asked}: {name} holds {of_what}; leave --hf_split out, or give the folder of that split."
        )


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow gives every row every column, and every object every field: absent ones are null."""
    return {key: _clean(value) for key, value in fields.items() if value is not None}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_nulls(value)
    return [_clean(item) for item in value] if isinstance(value, list) else value
