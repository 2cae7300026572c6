"""Corpus files in compressed blocks."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.errors import DataError
from parallelmind.retrieval.corpus_rows import corpus_file, corpus_versions, packed_file, read_corpus, write_corpus
from parallelmind.retrieval.row_blocks import RowReader, write_blocks
from parallelmind.retrieval.version_index import VersionIndex
from tests.retrieval.small_corpus import row

PACKED = Path("rows.jsonl.gz")


def packed(lines: list[bytes]) -> io.BytesIO:
    file = io.BytesIO()
    write_blocks(file, lines)
    return file


@settings(max_examples=25)
@given(
    st.lists(st.binary(max_size=200).map(lambda line: line.replace(b"\n", b"") + b"\n"), min_size=1),
    st.integers(1, 900),
)
def test_every_line_by_its_place(lines: list[bytes], times: int) -> None:
    lines = lines * times
    reader = RowReader(packed(lines), PACKED)
    found = list(reader.lines())
    assert [line for _, _, line in found] == lines
    for block, offset, line in found[:: max(1, len(found) // 20)]:
        assert reader.read(block, offset, len(line)) == line
    assert gzip.decompress(packed(lines).getvalue()) == b"".join(lines)


def test_an_index_reads_one_row_of_many(tmp_path: Path) -> None:
    rows = [row(f"box.f{n}", f"Number {n}. {'words ' * 50}") for n in range(900)]
    path = packed_file(corpus_file(tmp_path, "box", "1.0"))
    path.parent.mkdir()
    write_corpus(path, rows)
    assert corpus_file(tmp_path, "box", "1.0") == path
    assert corpus_versions(tmp_path) == {"box": ["1.0"]}
    assert list(read_corpus(path)) == rows
    index = VersionIndex(path, tmp_path / "index", package="box", version="1.0")
    assert [index.row(n) for n in (899, 0, 450)] == [rows[899], rows[0], rows[450]]
    index.close()
    again = path.read_bytes()
    write_corpus(path, rows)
    assert path.read_bytes() == again


BAD = {
    "not gzip": b"no gzip",
    "cut off": gzip.compress(b"{}\n", mtime=0)[:-9],
    "a row in two blocks": gzip.compress(b'{"a":') + gzip.compress(b"1}\n"),
    "a bomb": gzip.compress(b"\0" * (2**26 + 1)),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_in_blocks_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="unpack it with gunzip, or build it again"):
        list(RowReader(io.BytesIO(BAD[kind]), PACKED).lines())
