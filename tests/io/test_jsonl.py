import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine, read_lines, scan, scan_file
from parallelmind.io.line_table import InputSummary, LineTable


def write(folder: Path, content: bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(content)
    return path


def scanned(path: Path, **limits: int) -> InputSummary:
    with path.open("rb") as file:
        return scan_file(file, LineTable(), **limits)


def test_blank_lines_are_skipped_and_counted_but_keep_the_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n{1}\n \t\r\n{2}\r\n\n{3}")
    assert [(line.index, line.number, line.content) for line in read_lines(path)] == [
        (0, 2, b"{1}"),
        (1, 4, b"{2}"),
        (2, 6, b"{3}"),
    ]
    summary = scan(path)
    assert (summary.records, summary.blank_lines, summary.size) == (3, 3, path.stat().st_size)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n')
    assert [line.content for line in read_lines(path)] == [b'{"text": "a"}']


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("length", [99, 100, 101, 102, 103, 150, 5000])
def test_a_line_over_the_limit_is_not_kept_and_the_next_one_is_whole(tmp_path: Path, length: int, end: bytes) -> None:
    path = write(tmp_path, b"x" * length + end + (b"{2}" if end else b""))
    first, *rest = read_lines(path, max_line_bytes=100)
    assert (first.size, first.too_long) == (length, length > 100)
    assert len(first.content) <= 100
    assert [(line.number, line.content) for line in rest] == ([(2, b"{2}")] if end else [])
    assert scanned(path, max_line_bytes=100).size == path.stat().st_size


def test_only_the_first_records_are_read_and_hashed(tmp_path: Path) -> None:
    path = write(tmp_path, b"{1}\n{2}\n{3}\n")
    assert [line.content for line in read_lines(path, max_records=2)] == [b"{1}", b"{2}"]
    before = scanned(path, max_records=2)
    write(tmp_path, b"{1}\n{2}\nedited\n")
    assert scanned(path, max_records=2) == before
    assert before.records == 2


def test_the_digest_sees_every_byte_even_of_a_line_over_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, b"x" * 5000 + b"\n")
    before = scanned(path, max_line_bytes=100)
    write(tmp_path, b"x" * 4999 + b"y\n")
    assert scanned(path, max_line_bytes=100).digest != before.digest


@pytest.mark.parametrize("start", [b"\xff\xfe{\x00", b"\xfe\xff\x00{", b"BZh9", b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, start: bytes) -> None:
    path = write(tmp_path, start)
    with pytest.raises(DataError, match=r"in\.jsonl is not a JSONL file: it is (UTF-16|compressed|a zip)"):
        list(read_lines(path))


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        scan(tmp_path / "none.jsonl")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=20))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    lines: list[JsonLine] = list(read_lines(path))
    assert [json.loads(line.content)["text"] for line in lines] == texts
    assert [line.number for line in lines] == list(range(1, len(texts) + 1))
