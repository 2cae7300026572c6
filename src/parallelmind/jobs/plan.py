"""The plan of a job: where each record is in the input, and in which order the records are worked on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parallelmind.io.jsonl import JsonLine, LineReader, scan
from parallelmind.io.line_table import InputSummary, LineTable

GroupOf = Callable[[bytes], bytes]
"""The text that the record of a line shares with others, such as its context; records that share it are neighbours."""


class Plan:
    """Places of all records, and their order; 24 bytes a record."""

    def __init__(self, offsets: NDArray[np.uint64], numbers: NDArray[np.uint64], groups: NDArray[np.int64] | None):
        self.offsets = offsets
        self.numbers = numbers
        self.groups = groups
        """For each record the first record of its group; None: no groups, and work goes in input order."""

    def in_order(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """These records, given in input order, in the order of work: group after group."""
        if self.groups is None:
            return records
        return records[np.argsort(self.groups[records], kind="stable")]

    def save(self, folder: Path) -> None:
        np.save(folder / "plan-offsets.npy", self.offsets)
        np.save(folder / "plan-numbers.npy", self.numbers)


class PlanReader:
    """Reads the records of a plan from the input."""

    def __init__(self, input_path: Path, offsets: NDArray[np.uint64], numbers: NDArray[np.uint64]):
        self._lines = LineReader(input_path)
        self._offsets = offsets
        self._numbers = numbers

    @classmethod
    def load(cls, input_path: Path, folder: Path) -> PlanReader:
        """A plan that `Plan.save` stored, mapped into memory."""
        arrays = (np.load(folder / f"plan-{name}.npy", mmap_mode="r") for name in ("offsets", "numbers"))
        return cls(input_path, *arrays)

    def read(self, records: NDArray[np.int64]) -> Iterator[JsonLine]:
        """The lines of these records, in this order.

        Raises:
            DataError: the input was edited.
        """
        places = zip(records.tolist(), self._numbers[records].tolist(), self._offsets[records].tolist(), strict=True)
        for index, number, offset in places:
            yield self._lines.read(index=index, number=number, offset=offset)

    def close(self) -> None:
        self._lines.close()


def make_plan(
    input_path: Path, *, max_records: int | None = None, group_of: GroupOf | None = None
) -> tuple[InputSummary, Plan]:
    """Read the input once: its fingerprint and its plan.

    Raises:
        DataError: the input cannot be read.
    """
    table, keys = LineTable(), array("Q")

    def note(content: bytes) -> None:
        assert group_of
        digest = hashlib.blake2b(group_of(content), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))

    summary = scan(input_path, max_records=max_records, table=table, on_line=note if group_of else None)
    offsets, numbers = (np.frombuffer(values, np.uint64) for values in (table.offsets, table.numbers))
    groups = None
    if group_of and len(keys):
        _, first, group = np.unique(np.frombuffer(keys, np.uint64), return_index=True, return_inverse=True)
        groups = first[group].astype(np.int64)
    return summary, Plan(offsets, numbers, groups)
