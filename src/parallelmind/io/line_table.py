"""Where the records of a file are, and what stands there: the table that `jsonl.scan` fills."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UTF8_BOM = b"\xef\xbb\xbf"
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What `scan` found."""

    records: int
    blank_lines: int
    size: int
    """Bytes read."""
    digest: str
    """Hash of the records and of the numbers of their lines."""

    def same_records(self, other: InputSummary) -> bool:
        """Whether the records are the same, each in the same line."""
        return (self.records, self.digest) == (other.records, other.digest)


class LineTable:
    """The place and the hash of each record: 28 bytes a record, 32 where some are equal."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._numbers = array("I")
        self._hashes = bytearray()
        self._occurrences: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self._offsets)

    def adders(self) -> tuple[Callable[[int], None], Callable[[int], None], Callable[[bytes], None]]:
        """What notes of the next record the byte and the number of its line, and the first bytes of its content's hash.

        Apart, since a method for all three would be a fifth of the time that a file takes to scan.
        """
        return self._offsets.append, self._numbers.append, self._hashes.extend

    @property
    def offsets(self) -> NDArray[np.uint64]:
        """Byte of the file at which each line begins."""
        return np.frombuffer(self._offsets, np.uint64)

    @property
    def numbers(self) -> NDArray[np.uint32]:
        """Number of each line, from 1."""
        return np.frombuffer(self._numbers, np.uint32)

    def number_equals(self) -> None:
        """To be called when all records are noted: equal ones are told apart by how many of them stand before."""
        halves = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        same = np.zeros(len(order), np.bool_)
        if len(order):
            same[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
        if not same.any():
            return
        places = np.arange(len(order), dtype=np.uint32)
        starts = np.maximum.accumulate(np.where(same, np.uint32(0), places))
        self._occurrences = np.empty(len(order), np.uint32)
        self._occurrences[order] = places - starts

    @property
    def keys(self) -> NDArray[np.void]:
        """What stands for each record: the hash of its content, and of how many equal ones stand before it."""
        hashes = np.frombuffer(self._hashes, np.dtype((np.void, KEY_BYTES)))
        if self._occurrences is None:
            return hashes
        keys = hashes.copy()
        repeated = np.flatnonzero(self._occurrences)
        occurrences = self._occurrences[repeated].tolist()
        for record, occurrence in zip(repeated.tolist(), occurrences, strict=True):
            keys[record] = key_of(hashes[record].tobytes(), occurrence)
        return keys

    def occurrences(self, records: NDArray[np.int64]) -> list[int]:
        """How many equal records stand before each of these."""
        if self._occurrences is None:
            return [0] * len(records)
        return list(self._occurrences[records].tolist())

    def digest(self, records: int) -> str:
        """Hash of the first records and of the numbers of their lines."""
        hasher = hashlib.sha256(memoryview(self._hashes)[: records * KEY_BYTES])
        hasher.update(np.ascontiguousarray(self.numbers[:records], "<u4").tobytes())
        return hasher.hexdigest()[:32]


def key_of(content_hash: bytes, occurrence: int) -> bytes:
    """The key of a record whose content has this hash, before which so many equal ones stand."""
    if not occurrence:
        return content_hash[:KEY_BYTES]
    return hashlib.sha256(content_hash[:KEY_BYTES] + occurrence.to_bytes(8, "little")).digest()[:KEY_BYTES]
