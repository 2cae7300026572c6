"""Jobs with worker processes: every record has one outcome, in input order, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError
from parallelmind.jobs.job import Job
from parallelmind.jobs.ranks import Rank
from parallelmind.jobs.run import JobReport, RunOptions, run_job
from parallelmind.jobs.worker_state import Death, record_death
from tests.jobs.tasks import Records, read_rows, run, write_input


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def doubled(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "twice": 2 * n, "text": None} for n in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_record_once_in_input_order(tmp_path: Path, out: Path, workers: int) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(2000)))
    report = run(data, out, Records(ahead=4), workers)
    assert read_rows(out) == doubled(2000)
    assert (report.completion.answered, report.completion.failed) == (2000, 0)
    assert sum(worker.processed for worker in report.statistics.workers.values()) == 2000
    assert report.statistics.tokens_out == 4000
    assert not list(out.with_name("out.jsonl.job").glob("part-*"))
    stored = json.loads((out.with_name("out.jsonl.job") / "stats.json").read_text())
    assert (stored["records"], stored["successful"], stored["success_rate"]) == (2000, 2000, 1.0)
    assert stored["seconds_percentiles"]["p99"] == 0.5


def test_equal_records_are_each_done(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": 3, "id": "same"} for _ in range(50)))
    run(data, out, Records(), 2)
    assert read_rows(out) == [{"n": 3, "twice": 6, "text": None}] * 50


def test_an_empty_input_starts_no_worker(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ())
    run(data, out, Records(refuse=(0,)), 1)
    assert out.read_bytes() == b""


def test_a_record_that_kills_its_worker_fails_and_the_rest_goes_on(tmp_path: Path, out: Path) -> None:
    rows = [{"n": n, "do": "die" if n in (5, 23) else None} for n in range(40)]
    data = write_input(tmp_path / "in.jsonl", rows)
    log = tmp_path / "log"
    report = run(data, out, Records(ahead=4, log=log), 2)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(40))
    assert [row["n"] for row in answers if "error" in row] == [5, 23]
    said = "line 6: the worker was killed by SIGSEGV each time it ran this record, 2 times with no other."
    assert answers[5]["error"] == said
    assert report.statistics.errors_by_class == {"WorkerDied": 2}
    alone = [line for line in log.read_text().splitlines() if line.split()[0] == "5"][1:]
    assert alone == ["5 1", "5 1"]


@pytest.mark.parametrize(("do", "reason"), [("end", "was killed by SIGTERM"), ("leave", "ended with exit code 0")])
def test_a_worker_that_ends_while_there_is_work_is_replaced(tmp_path: Path, out: Path, do: str, reason: str) -> None:
    rows = [{"n": n, "do": do if n == 2 else None} for n in range(6)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = run(data, out, Records(), 1)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(6))
    assert [row["error"] for row in answers if "error" in row] == [
        f"line 3: the worker {reason} each time it ran this record, 2 times with no other."
    ]
    assert report.statistics.errors_by_class == {"WorkerDied": 1}


def test_what_a_former_run_knew_of_a_death_is_not_taken_for_one_of_this_run(tmp_path: Path, out: Path) -> None:
    data, log = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(3))), tmp_path / "log"
    folder = out.with_name("out.jsonl.job")
    folder.mkdir()
    record_death(folder, 0, 0, Death("was killed while it was started", "WorkerDied"))
    run(data, out, Records(seconds=0.3, log=log), 1)
    assert read_rows(out) == doubled(3)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["0", "1", "2"]


@pytest.mark.parametrize("records", [0, 5])
def test_all_ranks_end_when_nothing_is_left_to_do(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    """As under torchrun: an empty input, and a job that is complete already."""
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(records)))
    if records:
        run(data, out, Records(), 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    reports: dict[int, JobReport | None] = {}

    def rank(number: int) -> None:
        job = Job(kind="test", input_path=data, out_path=out, settings={})
        reports[number] = run_job(job, Records(), options=RunOptions(), rank=Rank(number, 2))

    other = threading.Thread(target=rank, args=(1,), daemon=True)
    other.start()
    rank(0)
    other.join(300)
    assert reports.keys() == {0, 1}, "rank 1 still waits"
    assert reports[0] is not None
    assert reports[0].completion.answered == records
    assert reports[1] is None
    assert read_rows(out) == doubled(records)


def test_a_run_in_this_process_needs_no_system_calls_that_windows_lacks(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pread", "pwrite", "fork"):
        monkeypatch.delattr(os, name)
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(5)))
    run(data, out, Records(), 0)
    assert read_rows(out) == doubled(5)


def test_a_record_that_hangs_is_ended_and_the_rest_goes_on(tmp_path: Path, out: Path) -> None:
    rows = [{"n": n, "do": "hang" if n == 2 else None} for n in range(12)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = run(data, out, Records(), 1, record_timeout=0.5)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(12))
    assert [row["n"] for row in answers if "error" in row] == [2]
    assert "(--record_timeout)" in answers[2]["error"]
    assert report.statistics.errors_by_class == {"Timeout": 1}


def test_a_worker_that_cannot_start_leaves_the_work_to_the_others(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(300)))
    report = run(data, out, Records(refuse=(0, 2)), 3)
    assert read_rows(out) == doubled(300)
    assert {rank: worker.processed for rank, worker in report.statistics.workers.items()} == {1: 300}


def test_no_worker_that_can_start_is_an_error_with_the_reason(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(3)))
    with pytest.raises(JobError, match=r"rank 0 has no model; get one; rank 1 .* 3 records have no result"):
        run(data, out, Records(refuse=(0, 1)), 2)
    assert not out.exists()
    run(data, out, Records(), 2)
    assert read_rows(out) == doubled(3)


def test_a_slow_worker_does_not_hold_the_others_up(tmp_path: Path, out: Path) -> None:
    # The first record takes until 300 are begun, by the other worker from both slices. What is in one lease with the
    # first, at most a quarter of what is left, has to wait for it.
    rows = [{"n": n, "do": "wait" if n == 0 else None, "until": 300} for n in range(400)]
    data = write_input(tmp_path / "in.jsonl", rows)
    run(data, out, Records(log=tmp_path / "log"), 2)
    assert read_rows(out) == doubled(400)
    begun = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert begun.count("0") == 1, "the first record waited in vain and was tried again"


def test_failed_records_are_counted_by_class(tmp_path: Path, out: Path) -> None:
    rows = [{"n": n, "do": "fail" if n % 10 == 0 else None} for n in range(100)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = run(data, out, Records(), 2)
    assert (report.completion.answered, report.completion.failed) == (90, 10)
    assert report.statistics.errors_by_class == {"Failed": 10}
    assert report.statistics.success_rate == 0.9
