"""Where the records of a file are: found block by block, without making a Python object for each line."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

UTF8_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**22
_MAY_BEGIN_BLANK = np.zeros(256, dtype=bool)
_MAY_BEGIN_BLANK[list(b" \t\n\r\x0b\x0c" + UTF8_BOM[:1])] = True


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What `scan` found."""

    records: int
    blank_lines: int
    size: int
    """Bytes read."""
    digest: str
    """Hash of the bytes read."""


class LineTable:
    """Where each record is: 16 bytes a record."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        """Byte of the file at which the line begins."""
        self.numbers = array("Q")
        """Number of the line, from 1."""


def scan_blocks(file: BinaryIO, max_line_bytes: int, table: LineTable | None) -> InputSummary:
    """What `jsonl.scan` finds in a whole file."""
    lines = _Lines(max_line_bytes, LineTable() if table is None else table)
    hasher = hashlib.blake2b(digest_size=16)
    while block := file.read(_BLOCK):
        hasher.update(block)
        lines.add(block)
    lines.end()
    return InputSummary(
        records=len(lines.table.offsets),
        blank_lines=lines.number - len(lines.table.offsets),
        size=lines.size,
        digest=hasher.hexdigest(),
    )


class _Lines:
    """Notes the place of each line that is not blank."""

    def __init__(self, max_line_bytes: int, table: LineTable) -> None:
        self.table = table
        self.number = 0
        """Lines so far."""
        self.size = 0
        self._max_line_bytes = max_line_bytes
        self._offset = 0
        """Where the line begins that has not ended in the blocks so far."""
        self._begun: bytes | None = b""
        """What is known of it; None: it is not blank, whatever follows."""

    def add(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        octets = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(octets == ord("\n")) + 1
        first = int(ends[0]) if len(ends) else len(block)
        self._begin(block[:first])
        if len(ends):
            self._finish()
            self._add_whole(block, octets, ends)
            last = int(ends[-1])
            self._offset = self.size + last
            self._begin(block[last:])
        self.size += len(block)

    def end(self) -> None:
        """End the file: a last line without a line end is a line too."""
        if self._offset < self.size:
            self._finish()

    def _add_whole(self, block: bytes, octets: np.ndarray, ends: np.ndarray) -> None:
        """Note the lines that begin and end in the block, whose line ends are `ends`."""
        starts = ends[:-1]
        kept = np.ones(len(starts), dtype=bool)
        for line in np.flatnonzero(_MAY_BEGIN_BLANK[octets[starts]]).tolist():
            kept[line] = not self._is_blank(block[starts[line] : ends[line + 1]])
        numbers = self.number + 1 + np.flatnonzero(kept)
        self.table.offsets.frombytes((starts[kept] + self.size).astype(np.uint64).tobytes())
        self.table.numbers.frombytes(numbers.astype(np.uint64).tobytes())
        self.number += len(starts)

    def _begin(self, part: bytes) -> None:
        """Take more of the line that has not ended yet."""
        if self._begun is None or not part:
            return
        if self._begun or _MAY_BEGIN_BLANK[part[0]]:
            self._begun += part
            if len(self._begun) <= self._max_line_bytes + 2:
                return
        self._begun = None

    def _finish(self) -> None:
        self.number += 1
        if self._begun is None or not self._is_blank(self._begun):
            self.table.offsets.append(self._offset)
            self.table.numbers.append(self.number)
        self._begun = b""

    def _is_blank(self, line: bytes) -> bool:
        """Whether the line, given with its end, is blank; one that is too long never is."""
        content = line.rstrip(b"\r\n")
        limit = self._max_line_bytes
        if len(line) > limit and (len(content) > limit or len(line) > limit + 2 or not line.endswith(b"\n")):
            return False
        content = content.removeprefix(UTF8_BOM)
        return not content or content.isspace()
