"""What a record comes to, and the latest result of every record, without its rows: some 47 bytes a record in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
"""One output row; one with an `error` that is not null makes its record a failed one."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of each record and summed over those of a worker and of a job.

    A new count is a field here and one of `RecordResult`, and what a task's worker gives for it: ledger, statistics,
    `parallelmind job` and Prometheus then have it, which shows the words that stand with it here.
    """

    tokens_in: int = field(default=0, metadata={"help": "Tokens read"})
    tokens_out: int = field(default=0, metadata={"help": "Tokens written"})
    retries: int = field(default=0, metadata={"help": "Requests tried again"})


COUNTS = {one.name: str(one.metadata["help"]) for one in fields(Counts)}
"""The names of what is counted, and what each is."""
OTHER_COUNTS = {name: text for name, text in COUNTS.items() if name not in ("tokens_in", "tokens_out")}
"""Those besides the tokens, which are shown as a pair."""


class RecordResult(NamedTuple):
    """The output rows of a record, and what it took to make them."""

    payload: bytes
    """The rows as they stand in the output, each with a line end."""
    rows: int
    failed_rows: int = 0
    final: bool = False
    """A failure that trying again cannot change, such as one that came with the input."""
    error_class: str = ""
    """Short name of the kind of failure, for the statistics; "" without one."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    """From the start of the work on the record to its end."""
    retries: int = 0

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        *,
        final: bool = False,
        error_class: str = "",
        tokens_in: int = 0,
        tokens_out: int = 0,
        seconds: float = 0.0,
        retries: int = 0,
    ) -> RecordResult:
        """The result with these output rows."""
        failed = 0
        for row in rows:
            failed += row.get("error") is not None
        return cls(
            payload=encode_rows(rows),
            rows=len(rows),
            failed_rows=failed,
            final=final,
            error_class=(error_class or "Error") if failed else "",
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            seconds=seconds,
            retries=retries,
        )


def encode_rows(rows: Sequence[Row]) -> bytes:
    """Rows as they stand in an output, each with a line end."""
    # What a server or an exception said may hold half a surrogate pair; then it stands there as JSON's own escape.
    return "".join([_encode(row) + "\n" for row in rows]).encode("utf-8", "backslashreplace")


MEASURES = RecordResult._fields[1:]
"""What is known of a result besides its rows."""
IN_OUTPUT = -1
"""Stands for the finished output where blocks of the ledger have their number."""
BY_COORDINATOR = 0
"""Stands for the coordinator where workers have rank + 1."""

_ABSENT = 0
_DTYPES = {int: np.dtype(np.uint32), bool: np.dtype(np.bool_), float: np.dtype(np.float32), str: np.dtype(np.int16)}
_KINDS = {name: kind for name, kind in get_type_hints(RecordResult).items() if name in MEASURES}


class ResultIndex:
    """For each record where the rows of its latest result are, and the measures that came with it."""

    def __init__(self, records: int) -> None:
        self.block = np.zeros(records, np.int32)
        """Block of the ledger that has the rows."""
        self.offset = np.zeros(records, np.int64)
        """Of the rows in the block."""
        self.size = np.zeros(records, np.uint32)
        self.attempt = np.zeros(records, np.uint16)
        self.worker = np.zeros(records, np.uint16)
        """Rank + 1 of the worker that made it."""
        self.measures: dict[str, NDArray[Any]] = {name: np.zeros(records, _DTYPES[_KINDS[name]]) for name in MEASURES}
        """Texts as their number in `texts`."""
        self.texts = [""]
        self._reopened = np.zeros(records, np.bool_)

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, measure: str) -> NDArray[Any]:
        return self.measures[measure]

    def add(
        self,
        records: NDArray[np.int64],
        *,
        block: int | NDArray[Any],
        offset: NDArray[Any],
        size: NDArray[Any],
        attempt: NDArray[Any],
        worker: int | NDArray[Any],
        measures: Sequence[Sequence[Any]],
    ) -> None:
        """Note results in the order they were made; the latest of a record counts.

        Args:
            measures: for each of MEASURES its values.
        """
        # NumPy keeps the last of several values for one place: the latest result.
        self.block[records], self.offset[records], self.size[records] = block, offset, size
        self.attempt[records], self.worker[records] = np.minimum(attempt, 2**16 - 1), worker
        for name, values in zip(MEASURES, measures, strict=True):
            self.measures[name][records] = self._stored(_KINDS[name], values)
        self._reopened[records] = False

    def settle(self, count: int) -> None:
        """The rows of the first records stand in the output, one record after the other."""
        sizes = self.size[:count].astype(np.int64)
        self.block[:count] = IN_OUTPUT
        self.offset[:count] = np.cumsum(sizes) - sizes

    def forget(self, records: NDArray[np.int64]) -> None:
        """These records have no result after all."""
        self.block[records] = _ABSENT

    def todo(self) -> NDArray[np.int64]:
        """The records without a result, or to be tried again, in input order."""
        return np.flatnonzero((self.block == _ABSENT) | self._reopened)

    def is_todo(self, record: int) -> bool:
        return bool(self.block[record] == _ABSENT or self._reopened[record])

    def reopen_failed(self, records: NDArray[np.int64] | None = None) -> None:
        """Try each failed record, or of these, once more, unless its failure is final.

        Its result stays until there is a new one.
        """
        chosen = slice(None) if records is None else records
        self._reopened[chosen] = self._retryable()[chosen]

    def reopened_records(self) -> NDArray[np.int64]:
        """The records that are still to be tried once more."""
        return np.flatnonzero(self._reopened)

    def failed_records(self) -> NDArray[np.int64]:
        """The records with a failed row, in input order."""
        return np.flatnonzero(self["failed_rows"])

    @property
    def has_result(self) -> NDArray[np.bool_]:
        return np.not_equal(self.block, _ABSENT)

    @property
    def done(self) -> int:
        return int(np.count_nonzero(self.block != _ABSENT))

    @property
    def reopened(self) -> int:
        return int(np.count_nonzero(self._reopened))

    @property
    def failed(self) -> int:
        """Failed records."""
        return int(np.count_nonzero(self["failed_rows"]))

    @property
    def retryable(self) -> int:
        """Failed records that can be tried again."""
        return int(np.count_nonzero(self._retryable()))

    def records_by_worker(self) -> dict[int, int]:
        """Records whose result each worker made, by rank."""
        counts = np.bincount(self.worker[self.has_result & (self.worker != BY_COORDINATOR)]).tolist()
        return {worker - 1: count for worker, count in enumerate(counts) if count}

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(block, offset, size) of stretches of a block that follow each other in the output too."""
        if not len(self):
            return
        end = self.offset + self.size
        breaks = (self.block[1:] != self.block[:-1]) | (self.offset[1:] != end[:-1])
        starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        lasts = np.concatenate((starts[1:], [len(self)])) - 1
        for part in range(0, len(starts), 2**16):
            first, last = starts[part : part + 2**16], lasts[part : part + 2**16]
            sizes = end[last] - self.offset[first]
            yield from zip(self.block[first].tolist(), self.offset[first].tolist(), sizes.tolist(), strict=True)

    def _retryable(self) -> NDArray[np.bool_]:
        retryable: NDArray[np.bool_] = (self["failed_rows"] > 0) & ~self["final"]
        return retryable

    def _stored(self, kind: type, values: Sequence[Any]) -> NDArray[Any]:
        if kind is str:
            return np.array([self._number(text) if text else 0 for text in values], np.int16)
        if kind is int:
            return np.minimum(np.array(values, np.int64), 2**32 - 1)
        return np.array(values, _DTYPES[kind])

    def _number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)
