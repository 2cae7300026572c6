"""Inputs that are compressed or come through a pipe, and outputs that are compressed."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from pathlib import Path

import pytest
import zstandard

from parallelmind.errors import JobError, SettingsError
from tests.disks import room_for
from tests.jobs.doubling import Rows, fails_on, job, rows
from tests.jobs.test_edits import TEN, edits, of, write


def packed(data: Path, packing: str) -> Path:
    path = data.with_name(f"in.jsonl.{packing}")
    content = data.read_bytes()
    half = len(content) // 2
    if packing == "gz":  # of two parts, as tools for several processors make them
        path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    else:
        compress = zstandard.ZstdCompressor(write_checksum=True).compress
        path.write_bytes(compress(content[:half]) + compress(content[half:]))
    return path


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_compressed_input_is_read_and_goes_on_as_any_other(data: Path, out: Path, packing: str) -> None:
    job(packed(data, packing), out).interrupt(2, 3)
    assert job(packed(data, packing), out).complete() == [0, 1, 4, 5, 6, 7, 8, 9]
    assert rows(out) == of(*TEN)
    write(data, 0, 20)
    assert job(packed(data, packing), out).complete() == [1]
    assert sorted(os.listdir(out.parent)) == ["in.jsonl", f"in.jsonl.{packing}", "out.jsonl", "out.jsonl.job"]


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_input_is_told(data: Path, out: Path, packing: str, damage: str) -> None:
    path = packed(data, packing)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-9:]
    else:
        content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"in\.jsonl\.\w+ is compressed and damaged"):
        job(path, out).complete()
    assert not out.exists()


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst"])
def test_an_output_whose_name_says_so_is_compressed(data: Path, out: Path, name: str) -> None:
    out = out.with_name(name)

    def read() -> Rows:
        content = out.read_bytes()
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        plain = gzip.decompress(content) if name.endswith("gz") else unpacker.decompress(content)
        return [json.loads(line) for line in plain.splitlines()]

    job(data, out).complete(fails_on(3))
    assert read() == of(*TEN, work=fails_on(3))
    first = out.read_bytes()
    again = job(data, out)
    assert again.complete() == []
    assert again.report
    assert again.report.completion.failures == [(4, "3 is bad")]
    write(data, *TEN, 10)
    assert job(data, out, retry_failed=True).complete() == [3, 10]
    assert read() == of(*TEN, 10)
    write(data, 5)
    assert job(data, out).complete() == []
    assert read() == of(5)
    other = job(data, out, {"a": 2})
    other.complete()
    assert other.out_path == out.with_name(name.replace("out", "out_2"))
    write(data, *TEN)
    fresh = job(data, out.with_name("fresh" + out.suffix))
    fresh.complete(fails_on(3))
    assert fresh.out_path.read_bytes() == first
    assert not list((out.parent / f"{name}.job").glob("*.tmp"))
    out.write_bytes(b"mine")
    with pytest.raises(JobError, match="was edited after its job was complete"):
        job(data, out).complete()


def test_records_come_through_a_pipe(data: Path, out: Path) -> None:
    pipe = data.with_name("pipe")
    os.mkfifo(pipe)

    def feed(*numbers: int) -> None:
        content = "".join(f'{{"n": {n}}}\n' for n in numbers)
        threading.Thread(target=pipe.write_text, args=(content,), daemon=True).start()

    feed(*TEN)
    job(pipe, out).interrupt(0, 1)
    feed(*TEN)
    assert job(pipe, out).complete() == list(range(2, 10))
    feed(*range(1, 12))  # most of it as before: the same input, edited
    assert job(pipe, out).complete() == [9, 10]
    assert rows(out) == of(*range(1, 12))
    feed(20, 21, 22)  # another one
    other = job(pipe, out)
    assert other.complete() == [0, 1, 2]
    assert other.out_path.name == "out_2.jsonl"
    assert rows(out) == of(*range(1, 12))


def test_a_compressed_pipe_may_begin_with_a_single_byte(data: Path, out: Path) -> None:
    pipe = data.with_name("pipe")
    os.mkfifo(pipe)
    packed = gzip.compress(data.read_bytes())

    def feed() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(packed[:1])
            time.sleep(0.2)
            file.write(packed[1:])

    threading.Thread(target=feed, daemon=True).start()
    job(pipe, out).complete()
    assert rows(out) == of(*TEN)


def test_a_disk_without_room_for_what_is_unpacked_is_named(data: Path, out: Path) -> None:

    write(data, *range(200_000))
    path = packed(data, "gz")
    with room_for(2**20), pytest.raises(SettingsError, match=r"in\.jsonl\.gz cannot be unpacked in .*: File too large"):
        job(path, out).complete()


def test_a_file_as_standard_input_is_read_once(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No edit of it can be noticed later, so none counts."""
    with data.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert job(Path("-"), out).complete(edits(data, 0, *range(20, 30))) == list(TEN)
    assert rows(out) == of(*TEN)
