"""Where the records of a file are, and what stands there: the table that `jsonl.scan` fills."""

from __future__ import annotations

import hashlib
from array import array
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


class LineTable:
    """The place and the key of each record: 28 bytes a record."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._numbers = array("I")
        self._keys = bytearray()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, *, offset: int, number: int, digest: bytes) -> None:
        """Note the next record: the byte and the number of its line, and the SHA-256 of its content."""
        self._offsets.append(offset)
        self._numbers.append(number)
        self._keys += digest[:KEY_BYTES]

    @property
    def offsets(self) -> NDArray[np.uint64]:
        """Byte of the file at which each line begins."""
        return np.frombuffer(self._offsets, np.uint64)

    @property
    def numbers(self) -> NDArray[np.uint32]:
        """Number of each line, from 1."""
        return np.frombuffer(self._numbers, np.uint32)

    @property
    def keys(self) -> NDArray[np.void]:
        """Hash of each record's content."""
        return np.frombuffer(self._keys, np.dtype((np.void, KEY_BYTES)))

    def digest(self, records: int) -> str:
        """Hash of the first records and of the numbers of their lines."""
        hasher = hashlib.sha256(memoryview(self._keys)[: records * KEY_BYTES])
        hasher.update(np.ascontiguousarray(self.numbers[:records], "<u4").tobytes())
        return hasher.hexdigest()[:32]
