"""Where the result of each record is, and what it took: 49 bytes a record, and no rows, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.parts import Entries, is_final

_ABSENT = -1
_KEPT = (
    "size", "attempt", "rows", "failed_rows", "tokens_in", "tokens_out", "seconds", "retries", "error_class", "worker",
    "_final",
)  # fmt: skip


class ResultIndex:
    """For each record: part, offset and size of its latest result, and the counts that came with it."""

    def __init__(self, records: int) -> None:
        self.part = np.full(records, _ABSENT, np.int32)
        """Which file has the rows."""
        self.worker = np.zeros(records, np.uint16)
        """Number of the part that the result was first written to: rank + 1, or 0 of the head."""
        self.offset = np.zeros(records, np.int64)
        self.size = np.zeros(records, np.int64)
        self.attempt = np.zeros(records, np.uint16)
        self.rows = np.zeros(records, np.uint32)
        self.failed_rows = np.zeros(records, np.uint32)
        self.tokens_in = np.zeros(records, np.uint32)
        self.tokens_out = np.zeros(records, np.uint32)
        self.seconds = np.zeros(records, np.float32)
        self.retries = np.zeros(records, np.uint16)
        self.error_class = np.zeros(records, np.int16)
        """Number in `error_classes`; 0 is none."""
        self.error_classes = [""]
        self._final = np.zeros(records, np.bool_)
        self._reopened = np.zeros(records, np.bool_)

    def __len__(self) -> int:
        return len(self.part)

    def add(self, entries: Entries) -> None:
        """Note results of one part, in the order they were written; of two attempts the later counts."""
        entries = entries[entries["attempt"] >= self.attempt[entries["record"]]]
        # NumPy keeps the last of several values for one place: the latest entry.
        place = entries["record"].astype(np.int64)
        self.part[place] = self.worker[place] = entries["worker"]
        for name in ("offset", "size", "attempt", "rows", "failed_rows", "tokens_in", "tokens_out", "seconds"):
            getattr(self, name)[place] = entries[name]
        self.retries[place] = entries["retries"]
        self.error_class[place] = self._numbers(entries["error_class"])
        self._final[place] = is_final(entries)
        self._reopened[place] = False

    def save(self, path: Path) -> None:
        """Store what is known of an output in which the rows of all records stand in input order."""
        columns = {name.lstrip("_"): getattr(self, name) for name in _KEPT}
        with path.open("wb") as file:
            np.savez_compressed(file, error_classes=np.array(self.error_classes), **columns)

    def load(self, path: Path, *, part: int) -> None:
        """Take over what `save` stored of an output, whose rows are those of `part` from now on.

        It may hold fewer records than this index, which has no results yet.
        """
        with np.load(path, allow_pickle=False) as stored:
            count = len(stored["size"])
            for name in _KEPT:
                getattr(self, name)[:count] = stored[name.lstrip("_")]
            self.error_classes = stored["error_classes"].tolist()
        self.settle(part, count)

    def settle(self, part: int, count: int | None = None) -> None:
        """The rows of the first records (all of them) now stand in `part`, one record after the other."""
        self.part[:count] = part
        self.offset[:count] = np.cumsum(self.size[:count]) - self.size[:count]

    def todo(self) -> NDArray[np.int64]:
        """The records without a result, or to be tried again, in input order."""
        return np.flatnonzero((self.part == _ABSENT) | self._reopened)

    def is_todo(self, place: int) -> bool:
        return bool(self.part[place] == _ABSENT or self._reopened[place])

    def reopen_failed(self) -> None:
        """Try each failed record once more, unless its failure is final; its result stays until there is a new one."""
        self._reopened[:] = (self.failed_rows > 0) & ~self._final

    def next_attempt(self, place: int) -> int:
        return int(self.attempt[place]) + 1

    def failed_places(self) -> Iterator[int]:
        """The records with a failed row, in input order."""
        return (int(place) for place in np.flatnonzero(self.failed_rows))

    @property
    def has_results(self) -> NDArray[np.bool_]:
        return np.not_equal(self.part, _ABSENT)

    @property
    def done(self) -> int:
        return int(np.count_nonzero(self.part != _ABSENT))

    def records_by_worker(self) -> dict[int, int]:
        """Records whose result is in the part of each worker process."""
        counts = np.bincount(self.worker[self.has_results & (self.worker > 0)]).tolist()
        return {part - 1: count for part, count in enumerate(counts) if count}

    @property
    def reopened(self) -> int:
        return int(np.count_nonzero(self._reopened))

    @property
    def failed_records(self) -> int:
        return int(np.count_nonzero(self.failed_rows))

    @property
    def retryable_records(self) -> int:
        """Failed records that can be tried again."""
        return int(np.count_nonzero((self.failed_rows > 0) & ~self._final))

    def _numbers(self, names: NDArray[Any]) -> NDArray[np.int16]:
        numbers = np.zeros(len(names), np.int16)
        for name in np.unique(names[names != b""]):
            text = name.decode("ascii")
            if text not in self.error_classes:
                self.error_classes.append(text)
            numbers[names == name] = self.error_classes.index(text)
        return numbers
