"""The part files: what stands in them, and what is left of them after a kill."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.parts import ENTRY, Part, PartWriter

DIGEST = bytes(range(16))
ROWS = [b'{"a": 1}\n', '{"字": 2}\n'.encode(), b'{"c": 3}\n{"c": 4}\n']


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(tmp_path, 3, DIGEST)


def fill(part: Part) -> None:
    writer = PartWriter(part)
    for record, payload in enumerate(ROWS):
        writer.append(record + 10, 1, Outcome(payload=payload, rows=payload.count(b"\n")))
    writer.close()


def test_the_files_byte_by_byte(part: Part) -> None:
    writer = PartWriter(part)
    outcome = Outcome.of(
        [{"error": "坏"}], final=True, error_class="DataError", tokens_in=5, tokens_out=6, seconds=0.5, retries=2
    )
    writer.append(7, 4, outcome)
    writer.close()
    rows = '{"error": "坏"}\n'.encode()
    assert part.rows_path.read_bytes() == rows
    packed = struct.pack(
        "<QQQIHHIIIIfHH28s", 7, 0, len(rows), zlib.crc32(rows), 4, 1, 1, 1, 5, 6, 0.5, 2, 3, b"DataError"
    )
    assert part.index_path.read_bytes() == b"PMPART2\n" + DIGEST + packed
    assert (ENTRY.itemsize, len(packed)) == (84, 84)
    assert (part.rows_path.name, part.index_path.name) == ("part-00003.rows", "part-00003.index")


def test_new_entries_are_read_once(part: Part) -> None:
    assert len(part.read_new()) == 0
    fill(part)
    assert part.read_new()["record"].tolist() == [10, 11, 12]
    assert len(part.read_new()) == 0
    fill(part)
    assert part.read_new()["offset"].tolist() == [38, 47, 58]


def test_a_half_entry_is_not_read_before_it_is_whole(part: Part) -> None:
    fill(part)
    content = part.index_path.read_bytes()
    part.index_path.write_bytes(content[:-1])
    assert part.read_new()["record"].tolist() == [10, 11]
    part.index_path.write_bytes(content)
    assert part.read_new()["record"].tolist() == [12]


def test_cut_anywhere_whole_entries_are_left(part: Part, tmp_path: Path) -> None:
    fill(part)
    rows, index = part.rows_path.read_bytes(), part.index_path.read_bytes()
    header, ends = 24, [0, 9, 20, 38]
    assert len(rows) == ends[-1]
    for rows_kept in range(len(rows) + 1):
        for index_kept in (0, 10, header, header + 83, header + 84, header + 100, header + 168, len(index)):
            part.rows_path.write_bytes(rows[:rows_kept])
            part.index_path.write_bytes(index[:index_kept])
            whole = min(max(index_kept - header, 0) // 84, max(n for n, end in enumerate(ends) if end <= rows_kept))
            fresh = Part(tmp_path, 3, DIGEST)
            cut = fresh.check(records=100)
            assert len(fresh.read_new()) == whole
            assert part.rows_path.read_bytes() == rows[: ends[whole]]
            assert part.index_path.read_bytes() == (index[: header + 84 * whole] if whole else b"")
            assert cut == rows_kept - ends[whole] + index_kept - (header + 84 * whole if whole else 0)


@pytest.mark.parametrize("records", [10, 12])
def test_entries_of_records_that_are_not_in_the_input_are_cut(part: Part, records: int) -> None:
    fill(part)
    part.check(records)
    assert part.read_new()["record"].tolist() == list(range(10, records))


def test_changed_rows_are_cut(part: Part) -> None:
    fill(part)
    content = bytearray(part.rows_path.read_bytes())
    content[10] ^= 1
    part.rows_path.write_bytes(content)
    assert part.check(100) == 29 + 168
    assert part.read_new()["record"].tolist() == [10]


def test_a_part_of_another_job_is_refused(part: Part, tmp_path: Path) -> None:
    fill(part)
    other = Part(tmp_path, 3, bytes(16))
    for use in (other.read_new, lambda: other.check(100)):
        with pytest.raises(JobError, match=r"part-00003.index belongs to another job; begin anew with --overwrite"):
            use()


@pytest.mark.parametrize("failing", ["rows", "index"])
def test_a_full_disk_leaves_what_was_written_before(part: Part, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    fill(part)
    before = part.rows_path.read_bytes(), part.index_path.read_bytes()
    writer = PartWriter(part)
    path = part.rows_path if failing == "rows" else part.index_path
    real = os.write

    def full(descriptor: int, content: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            real(descriptor, bytes(content)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JobError, match=rf"part-00003\.{failing}: No space left on device\. Free some space"):
        writer.append(50, 1, Outcome(payload=b"x" * 2**18, rows=1))
    monkeypatch.undo()
    assert (part.rows_path.read_bytes(), part.index_path.read_bytes()) == before
    writer.append(51, 1, Outcome(payload=b"later\n", rows=1))
    writer.close()
    assert part.check(100) == 0
    assert part.read_new()["record"].tolist() == [10, 11, 12, 51]


def test_numbers_that_do_not_fit_are_the_largest_that_do(part: Part) -> None:
    writer = PartWriter(part)
    writer.append(1, 10**6, Outcome(payload=b"", rows=0, tokens_in=2**40, retries=10**6, error_class="E" * 99))
    writer.close()
    entry = part.read_new()[0]
    assert (entry["attempt"], entry["tokens_in"], entry["retries"]) == (2**16 - 1, 2**32 - 1, 2**16 - 1)
    assert entry["error_class"] == b"E" * 28
