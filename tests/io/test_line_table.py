"""The table of an input: where the records are, and what stands there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.io.jsonl import LineReader, read_lines, scan
from parallelmind.io.line_table import UTF8_BOM, LineTable

PIECES = [b"{}", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\x0b", UTF8_BOM, UTF8_BOM[:2], b"text ", b" " * 9, b"\x85"]
LIMIT = 8


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=600)
def test_the_table_has_the_lines_that_are_read(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(b"x" + b"".join(pieces))  # no file begins like another format
    table = LineTable()
    summary = scan(path, max_line_bytes=LIMIT, table=table)
    lines = list(read_lines(path, max_line_bytes=LIMIT))
    assert table.numbers.tolist() == [line.number for line in lines]
    reader = LineReader(path, max_line_bytes=LIMIT)
    places = enumerate(zip(table.numbers.tolist(), table.offsets.tolist(), strict=True))
    assert [reader.read(index=index, number=number, offset=offset) for index, (number, offset) in places] == lines
    assert [key.tobytes() for line, key in zip(lines, table.keys, strict=True) if not line.too_long] == [
        hashlib.sha256(line.content).digest()[:16] for line in lines if not line.too_long
    ]
    assert (summary.records, summary.size) == (len(lines), path.stat().st_size)


def test_blank_lines_and_marks_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(UTF8_BOM + b"\n\n{}\r\n  \n" + '{"main": "北京"}'.encode() * 9 + b"\n \n{}")
    table = LineTable()
    summary = scan(path, max_line_bytes=50, table=table)
    assert table.numbers.tolist() == [line.number for line in read_lines(path, max_line_bytes=50)] == [3, 5, 7]
    assert (summary.records, summary.blank_lines) == (3, 4)
    assert table.offsets.tolist() == [5, 12, 12 + 18 * 9 + 3]


def test_the_digest_of_the_first_records_is_that_of_a_file_that_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{1}\n\n{2}\n{3}\n")
    table = LineTable()
    scan(path, table=table)
    for ending in (b"", b"\n", b"\n\n"):
        path.write_bytes(b"{1}\n\n{2}" + ending)
        assert scan(path).digest == table.digest(2)
    for other in (b"{1}\n{2}\n", b"{1}\n\n{2} \n", b"{1}\n\n{4}\n"):
        path.write_bytes(other)
        assert scan(path).digest != table.digest(2)
