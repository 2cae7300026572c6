"""Where the result of each record is: 33 bytes a record, and no rows, in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parallelmind.jobs.parts import Entry

__all__ = ["ResultIndex"]

_ABSENT = -1


class ResultIndex:
    """For each record: the part and offset of its latest result, its key, attempts, rows and failed rows."""

    def __init__(self, records: int) -> None:
        self._part = np.full(records, _ABSENT, dtype=np.int32)
        self._offset = np.zeros(records, dtype=np.int64)
        self._key = np.zeros(records, dtype=np.uint64)
        self._attempt = np.zeros(records, dtype=np.int32)
        self._rows = np.zeros(records, dtype=np.int32)
        self._failed_rows = np.zeros(records, dtype=np.int32)
        self._reopened = np.zeros(records, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._part)

    def add(self, entry: Entry, *, part: int, offset: int) -> None:
        """Note a result, unless the one already noted is of a later attempt."""
        place = entry.index
        if entry.attempt < self._attempt[place]:
            return
        self._part[place] = part
        self._offset[place] = offset
        self._key[place] = int(entry.key, 16)
        self._attempt[place] = entry.attempt
        self._rows[place] = entry.rows
        self._failed_rows[place] = entry.failed_rows
        self._reopened[place] = False

    def is_pending(self, place: int, key: str) -> bool:
        """Whether the record has no result of this content and these settings, or is to be tried again."""
        absent = self._part[place] == _ABSENT or self._key[place] != int(key, 16)
        return bool(absent or self._reopened[place])

    def reopen_failed(self) -> None:
        """Try each failed record once more; its result stays until there is a new one."""
        self._reopened[:] = self._failed_rows > 0

    def attempts(self, place: int) -> int:
        return int(self._attempt[place])

    def location(self, place: int) -> tuple[int, int]:
        """(part, offset) of a record that has a result."""
        return int(self._part[place]), int(self._offset[place])

    def failed_places(self) -> Iterator[int]:
        """The records with a failed row, in input order."""
        return (int(place) for place in np.flatnonzero(self._failed_rows))

    @property
    def done(self) -> int:
        return int(np.count_nonzero(self._part != _ABSENT))

    @property
    def reopened(self) -> int:
        return int(np.count_nonzero(self._reopened))

    @property
    def failed_records(self) -> int:
        return int(np.count_nonzero(self._failed_rows))

    @property
    def rows(self) -> int:
        return int(self._rows.sum(dtype=np.int64))

    @property
    def failed_rows(self) -> int:
        return int(self._failed_rows.sum(dtype=np.int64))
