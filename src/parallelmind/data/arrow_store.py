"""Encoded samples in an Arrow file, which is mapped into memory: read from disk where it is needed, and shared by all
processes of a machine. In memory are lengths alone, a few bytes a branch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from parallelmind.data.encoder import EncodedSample
from parallelmind.data.planned import PlannedBranch, PlannedSample
from parallelmind.data.sources import RecordSource

_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "loose": pa.bool_(),
        "main": _TOKENS,
        "ids": _TOKENS,  # of all branches, one after the other
        "supervised": pa.binary(),  # of these, one byte each
        "lengths": pa.list_(pa.int32()),  # of each branch, as the next two
        "numbers": pa.list_(pa.int32()),
        "counts": pa.list_(pa.int32()),
    }
)
_Ints = npt.NDArray[np.int64]


class Numbered(NamedTuple):
    """A sample, and the number of its row in its source."""

    row: int
    sample: EncodedSample


def batch_of(samples: Sequence[Numbered]) -> Any:
    """The record batch of some samples."""
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for row, sample in samples:
        ids = array("i")
        for branch in sample.branches:
            ids.extend(branch.ids)
        columns["row"].append(row)
        columns["loose"].append(sample.loose)
        columns["main"].append(np.asarray(sample.main, dtype=np.int32))
        columns["ids"].append(np.asarray(ids, dtype=np.int32))
        columns["supervised"].append(b"".join(branch.loss_mask for branch in sample.branches))
        columns["lengths"].append([len(branch) for branch in sample.branches])
        columns["numbers"].append([branch.number for branch in sample.branches])
        columns["counts"].append([sum(branch.loss_mask) for branch in sample.branches])
    return pa.record_batch([pa.array(columns[one.name], one.type) for one in _SCHEMA], schema=_SCHEMA)


class ArrowWriter:
    """Writes record batches into a file, for the length of a `with` block."""

    def __init__(self, path: Path):
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)

    def write(self, batch: Any) -> int:
        """Returns the tokens of the batch."""
        self._writer.write_batch(batch)
        return sum(len(batch.column(name).values) for name in ("main", "ids"))

    def __enter__(self) -> ArrowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._writer.close()
        finally:
            self._file.close()


class ArrowStore:
    """The samples of a file that `ArrowWriter` wrote.

    Args:
        source: where they are from, for messages.
    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, source: RecordSource):
        self._path = path
        self._source = source
        self._open()

    def _open(self) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._columns = [{name: _Lists.of(batch.column(name)) for name in _LISTS} for batch in batches]
        sizes = [batch.num_rows for batch in batches]
        self._ends = np.cumsum(sizes, dtype=np.int64) if sizes else np.zeros(0, dtype=np.int64)
        self._rows = _joined([batch.column("row").to_numpy() for batch in batches], np.int64)
        self._loose = _joined([batch.column("loose").to_numpy(zero_copy_only=False) for batch in batches], np.bool_)
        self._mains = _joined([np.diff(columns["main"].offsets) for columns in self._columns], np.int32)
        branches = _joined([np.diff(columns["lengths"].offsets) for columns in self._columns], np.int64)
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(branches)))
        self._lengths, self._numbers, self._counts = (
            _joined([columns[name].within() for columns in self._columns], np.int32)
            for name in ("lengths", "numbers", "counts")
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_source": self._source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def planned(self, sample: int) -> PlannedSample:
        span = slice(int(self._starts[sample]), int(self._starts[sample + 1]))
        each = zip(self._numbers[span].tolist(), self._lengths[span].tolist(), self._counts[span].tolist(), strict=True)
        branches = [PlannedBranch(sample, place, *one) for place, one in enumerate(each)]
        where = self._source.where(int(self._rows[sample]))
        return PlannedSample(where, bool(self._loose[sample]), int(self._mains[sample]), branches)

    def main(self, sample: int) -> Sequence[int]:
        columns, at = self._at(sample)
        ids: list[int] = columns["main"].of_sample(at).tolist()
        return ids

    def branch(self, branch: PlannedBranch) -> tuple[Sequence[int], bytes]:
        columns, at = self._at(branch.sample)
        first = int(self._starts[branch.sample])
        start = int(self._lengths[first : first + branch.place].sum())
        span = slice(start, start + branch.tokens)
        return columns["ids"].of_sample(at)[span].tolist(), columns["supervised"].of_sample(at)[span].tobytes()

    def _at(self, sample: int) -> tuple[dict[str, _Lists], int]:
        """The columns of the batch of a sample, and its place there."""
        index = int(np.searchsorted(self._ends, sample, side="right"))
        return self._columns[index], sample - (int(self._ends[index - 1]) if index else 0)


_LISTS = ("main", "ids", "supervised", "lengths", "numbers", "counts")


class _Lists(NamedTuple):
    """A column of lists, as views of the mapped file."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int32]

    @classmethod
    def of(cls, column: Any) -> _Lists:
        if pa.types.is_binary(column.type):
            _, offsets, values = column.buffers()
            ends = np.frombuffer(offsets, dtype=np.int32)[: len(column) + 1]
            held = np.frombuffer(values, dtype=np.uint8) if values is not None else np.zeros(0, np.uint8)
            return cls(held, ends)
        return cls(column.values.to_numpy(), column.offsets.to_numpy())

    def of_sample(self, at: int) -> npt.NDArray[Any]:
        return self.values[self.offsets[at] : self.offsets[at + 1]]

    def within(self) -> npt.NDArray[Any]:
        """All values of the lists."""
        return self.values[self.offsets[0] : self.offsets[-1]]


def _joined(parts: list[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.zeros(0, dtype=kind)
