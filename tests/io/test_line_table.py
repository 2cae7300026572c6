"""The table of an input: where the records are, and what stands there."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.io.jsonl import JsonLine, read_line, read_lines, scan, scan_file
from parallelmind.io.line_table import UTF8_BOM, LineTable, key_of

PIECES = [b"{}", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\x0b", UTF8_BOM, UTF8_BOM[:2], b"text ", b" " * 9, b"\x85"]
LIMIT = 8


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=600)
def test_the_table_has_the_lines_that_are_read(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(b"x" + b"".join(pieces))  # no file begins like another format
    table = LineTable()
    with path.open("rb") as file:
        summary = scan_file(file, table, max_line_bytes=LIMIT)
    lines = list(read_lines(path, max_line_bytes=LIMIT))
    assert table.numbers.tolist() == [line.number for line in lines]
    places = enumerate(zip(table.numbers.tolist(), table.offsets.tolist(), strict=True))
    seen: Counter[bytes] = Counter()
    keys, read = [], []
    with path.open("rb") as file:
        for index, (number, offset) in places:
            content, size, digest = read_line(file, offset, LIMIT)
            read.append(JsonLine(index, number, content, size))
            keys.append(key_of(digest, seen[digest]))
            seen[digest] += 1
            assert len(content) < size or digest == hashlib.sha256(content).digest()
    assert read == lines
    assert table.keys.tolist() == keys
    assert len(set(keys)) == len(keys)
    assert table.occurrences(np.arange(len(keys))) == [_before(lines, place) for place in range(len(lines))] or any(
        line.too_long for line in lines
    )
    assert (summary.records, summary.size) == (len(lines), path.stat().st_size)


def test_blank_lines_and_marks_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(UTF8_BOM + b"\n\n{}\r\n  \n" + '{"main": "北京"}'.encode() * 9 + b"\n \n{}")
    table = LineTable()
    with path.open("rb") as file:
        summary = scan_file(file, table, max_line_bytes=50)
    assert table.numbers.tolist() == [line.number for line in read_lines(path, max_line_bytes=50)] == [3, 5, 7]
    assert (summary.records, summary.blank_lines) == (3, 4)
    assert table.offsets.tolist() == [5, 12, 12 + 18 * 9 + 3]


def test_the_digest_of_the_first_records_is_that_of_a_file_that_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{1}\n\n{2}\n{3}\n")
    table = LineTable()
    with path.open("rb") as file:
        scan_file(file, table)
    for ending in (b"", b"\n", b"\n\n"):
        path.write_bytes(b"{1}\n\n{2}" + ending)
        assert scan(path).digest == table.digest(2)
    for other in (b"{1}\n{2}\n", b"{1}\n\n{2} \n", b"{1}\n\n{4}\n"):
        path.write_bytes(other)
        assert scan(path).digest != table.digest(2)


def _before(lines: list[JsonLine], place: int) -> int:
    return sum(line.content == lines[place].content for line in lines[:place])
