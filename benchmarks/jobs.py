"""What a job costs without a model: records a second through worker processes, and the time to resume.

    python benchmarks/jobs.py [--records 1000000] [--save]

Records of 1 KB become output rows of 1 KB: reading the input, leases, the ledger, statistics and the ordered merge are
all in the time; the start of the Python processes is in the first line of each pair only. "bytes"
hands every line on as it is, so that the job itself is measured; "json" parses and serialises it, as real work does,
and beside it stands one loop that does the same with no guarantee at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from machine import describe, save

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import run_job
from parallelmind.jobs.storage import job_folder
from parallelmind.jobs.task import Write
from parallelmind.tasks.copy_task import CopyTask


def write_records(path: Path, records: int) -> None:
    """Rows of 1,000 bytes."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(records):
            text = f"{n:08d}" + "The quick brown fox jumps over the lazy dog. " * 21
            file.write(json.dumps({"id": n, "main": text[:962]}) + "\n")


def plain_copy(data: Path, out: Path) -> float:
    """The same work in one loop; seconds."""
    began = time.perf_counter()
    with data.open("rb") as source, out.open("wb") as target:
        for line in source:
            target.write(json.dumps(json.loads(line), ensure_ascii=False).encode() + b"\n")
    return time.perf_counter() - began


class InterruptedRunError(Exception):
    """Before the output was written."""


class UpToTheMerge(CopyTask):
    """Is interrupted when every record has its result."""

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        super().run(lines, write)
        raise InterruptedRunError


def with_workers(task: CopyTask, workers: int) -> tuple[float, float]:
    """(seconds of the whole run, seconds from the first working worker to the last result)."""
    began = time.perf_counter()
    report = run_job(task, RunOptions(workers=workers))
    assert report is not None
    assert task.out_path.stat().st_size == task.input_path.stat().st_size
    return time.perf_counter() - began, report.statistics.seconds


def resume(data: Path, out: Path) -> tuple[float, float]:
    """(seconds to open a job whose records all have results, seconds to merge)."""
    task = UpToTheMerge(data, out)
    with contextlib.suppress(InterruptedRunError):
        run_job(task, RunOptions())
    began = time.perf_counter()
    with OpenJob(task, RunOptions()) as again:
        opened = time.perf_counter() - began
        assert not len(again.todo())
        began = time.perf_counter()
        again.finish()
        return opened, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    print(describe())
    rows = ["| run | seconds | records/s | records/s a worker |", "|---|---|---|---|"]

    def show(name: str, seconds: float, workers: int | None) -> None:
        rate = args.records / seconds
        each = f"{rate / workers:,.0f}" if workers else ""
        rows.append(f"| {name} | {seconds:.1f} | {rate:,.0f} | {each} |")
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "in.jsonl"
        write_records(data, args.records)
        show("plain loop, no guarantee", plain_copy(data, Path(folder) / "plain.jsonl"), None)
        for parse in (False, True):
            for workers in args.workers:
                kind = "json" if parse else "bytes"
                out = Path(folder) / "out.jsonl"
                whole, working = with_workers(CopyTask(data, out, parse), workers)
                show(f"{kind}, {workers} worker(s), whole run", whole, workers)
                show(f"{kind}, {workers} worker(s), from the first lease to the end", working, workers)
                shutil.rmtree(job_folder(out))
                out.unlink()
        opened, merged = resume(data, Path(folder) / "resumed.jsonl")
        show("open a job whose records are all done", opened, None)
        show("merge alone", merged, None)
    table = "\n".join(rows)
    if args.save:
        notes = f"\n{args.records:,} records of 1 KB.\n"
        print(save("jobs", "Jobs without a model", table, notes))


if __name__ == "__main__":
    main()
