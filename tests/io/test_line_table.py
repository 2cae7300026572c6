"""Block by block, the same lines are found as one by one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.io import line_table
from parallelmind.io.jsonl import read_lines, scan
from parallelmind.io.line_table import UTF8_BOM, LineTable, scan_blocks

PIECES = [b"{}", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\x0b", UTF8_BOM, UTF8_BOM[:2], b"text ", b" " * 9, b"\x85"]
LIMIT = 8


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30), block=st.integers(1, 12))
@settings(max_examples=600)
def test_blocks_find_what_single_lines_do(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], block: int
) -> None:
    content = b"".join(pieces)
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(b"")
    by_line, by_block = LineTable(), LineTable()
    path.write_bytes(b"x" + content)  # no file begins like another format
    expected = scan(path, max_line_bytes=LIMIT, table=by_line, on_line=lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_table, "_BLOCK", block)
        found = scan_blocks(io.BytesIO(b"x" + content), LIMIT, by_block)
    assert found == expected
    assert by_block.offsets == by_line.offsets
    assert by_block.numbers == by_line.numbers


def test_the_lines_are_those_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(UTF8_BOM + b"\n\n{}\r\n  \n" + '{"main": "北京"}'.encode() * 9 + b"\n \n{}")
    table = LineTable()
    summary = scan(path, max_line_bytes=50, table=table)
    lines = list(read_lines(path, max_line_bytes=50))
    assert list(table.numbers) == [line.number for line in lines] == [3, 5, 7]
    assert (summary.records, summary.blank_lines) == (3, 4)
    assert list(table.offsets) == [5, 12, 12 + 18 * 9 + 3]
