"""Jobs with workers: every record has one result, in input order, whatever happens, and over every transport alike."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError, ParallelMindError
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import Rank
from parallelmind.jobs.run import JobReport, run_job
from tests.cases import few
from tests.jobs.launching import Actors, Launcher, Processes, Ranks, ray_cluster
from tests.jobs.tasks import Records, doubled, read_rows, run, write_input


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(params=few(["local", "torchrun", "ray"]))
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launcher:
    if request.param == "ray":
        return Actors(request.getfixturevalue("cluster").address)
    return Ranks(tmp_path) if request.param == "torchrun" else Processes()


ALSO_TORCHRUN = pytest.mark.parametrize("launch", few(["local", "torchrun", "ray"], 2), indirect=True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@ALSO_TORCHRUN
def test_every_record_once_in_input_order(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(2000)))
    report = launch(Records(data, out, ahead=4), 2)
    assert read_rows(out) == doubled(2000)
    assert (report.completion.answered, report.completion.failed) == (2000, 0)
    assert sum(worker.processed for worker in report.statistics.workers.values()) == 2000
    assert report.statistics.tokens_out == 4000
    stored = json.loads((out.with_name("out.jsonl.job") / "stats.json").read_text())
    assert (stored["records"], stored["successful"], stored["success_rate"]) == (2000, 2000, 1.0)
    assert stored["seconds_percentiles"]["p99"] == 0.5


def test_a_small_file_is_divided_evenly(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(11)))
    report = launch(Records(data, out), 2)
    assert {rank: worker.processed for rank, worker in report.statistics.workers.items()} == {0: 6, 1: 5}


@ALSO_TORCHRUN
def test_a_record_that_kills_its_worker_fails_and_the_rest_goes_on(tmp_path: Path, out: Path, launch: Launcher) -> None:
    rows = [{"n": n, "do": "die" if n in (5, 23) else None} for n in range(40)]
    data, log = write_input(tmp_path / "in.jsonl", rows), tmp_path / "log"
    report = launch(Records(data, out, ahead=4, log=log), 2)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(40))
    assert [row["n"] for row in answers if "error" in row] == [5, 23]
    how = "was lost" if launch.name == "ray" else "was killed by SIGSEGV"
    assert answers[5]["error"] == f"line 6: the worker {how} each time it ran this record, 2 times with no other."
    assert report.statistics.errors_by_class == {"WorkerDied": 2}
    alone = [line.split()[:2] for line in log.read_text().splitlines() if line.split()[0] == "5"][1:]
    assert alone == [["5", "1"], ["5", "1"]]


def test_a_record_that_hangs_is_ended_and_the_rest_goes_on(tmp_path: Path, out: Path, launch: Launcher) -> None:
    rows = [{"n": n, "do": "hang" if n == 2 else None} for n in range(12)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = launch(Records(data, out), 1, record_timeout=0.5)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(12))
    assert [row["n"] for row in answers if "error" in row] == [2]
    assert "(--record_timeout)" in answers[2]["error"]
    assert report.statistics.errors_by_class == {"Timeout": 1}


def test_a_worker_that_stands_still_costs_the_timeout_and_holds_nobody_up(
    tmp_path: Path, out: Path, launch: Launcher
) -> None:
    """Stopped by a signal: it neither reads nor writes any more, in the middle of whatever it was sent."""
    rows = [{"n": n, "do": "stop" if n == 2 else None, "text": "x" * 200_000} for n in range(60)]
    data = write_input(tmp_path / "in.jsonl", rows)
    launch(Records(data, out), 2, record_timeout=0.7)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(60))
    assert [row["n"] for row in answers if "error" in row] == [2]


def test_a_worker_that_cannot_start_leaves_the_work_to_the_others(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(300)))
    report = launch(Records(data, out, refuse=(0, 2)), 3)
    assert read_rows(out) == doubled(300)
    assert {rank: worker.processed for rank, worker in report.statistics.workers.items()} == {1: 300}


def test_no_worker_that_can_start_is_an_error_with_the_reason(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(3)))
    with pytest.raises(JobError, match=r"rank 0 has no model; get one; rank 1 .* 3 records have no result"):
        launch(Records(data, out, refuse=(0, 1)), 2)
    assert not out.exists()
    launch(Records(data, out), 2)
    assert read_rows(out) == doubled(3)


def test_workers_that_die_as_they_start_fail_the_run_and_no_record(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(4)))
    with pytest.raises(JobError, match=r"worker 0 was .* 3 times before it could begin.* 4 records have no result"):
        launch(Records(data, out, crash_after=0.1), 2)
    launch(Records(data, out), 2)
    assert read_rows(out) == doubled(4)


def test_a_worker_that_gives_up_casts_no_suspicion_on_what_it_had(tmp_path: Path, out: Path, launch: Launcher) -> None:
    rows = [{"n": n, "do": "refuse" if n == 30 else None} for n in range(40)]
    data = write_input(tmp_path / "in.jsonl", rows)
    with pytest.raises(JobError, match=r"the key was revoked; get another\. \d+ records have no result"):
        launch(Records(data, out), 2)
    rest = write_input(tmp_path / "in.jsonl", ({"n": n, "do": None} for n in range(40)))
    launch(Records(rest, out), 2, overwrite=True)
    assert read_rows(out) == doubled(40)


def test_failed_records_are_counted_by_class_and_tried_again(tmp_path: Path, out: Path, launch: Launcher) -> None:
    rows = [{"n": n, "do": "fail" if n % 10 == 0 else None} for n in range(100)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = launch(Records(data, out), 2)
    assert (report.completion.answered, report.completion.failed) == (90, 10)
    assert report.statistics.errors_by_class == {"Failed": 10}
    assert report.statistics.success_rate == 0.9
    log = tmp_path / "log"
    again = launch(Records(data, out, log=log), 2, retry_failed=True)
    assert again.resumed == 90
    assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == list(range(0, 100, 10))


@ALSO_TORCHRUN
def test_a_longer_input_extends_the_job_and_a_finished_one_is_left_alone(
    tmp_path: Path, out: Path, launch: Launcher
) -> None:
    log = tmp_path / "log"
    for records, begun in ((20, 20), (20, 20), (31, 31)):
        data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(records)))
        launch(Records(data, out, log=log), 2)
        assert read_rows(out) == doubled(records)
        assert len(log.read_text().splitlines()) == begun


@ALSO_TORCHRUN
def test_an_empty_input_starts_no_worker(tmp_path: Path, out: Path, launch: Launcher) -> None:
    data = write_input(tmp_path / "in.jsonl", ())
    launch(Records(data, out, refuse=(0, 1)), 2)
    assert out.read_bytes() == b""


def test_no_worker_does_more_than_its_slice_where_that_was_asked_for(
    tmp_path: Path, out: Path, launch: Launcher
) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(200)))
    report = launch(Records(data, out), 2, most_per_worker=100)
    assert {rank: worker.processed for rank, worker in report.statistics.workers.items()} == {0: 100, 1: 100}


def test_a_slow_worker_does_not_hold_the_others_up(tmp_path: Path, out: Path, launch: Launcher) -> None:
    # The first record takes until 300 are begun, by the other worker from both slices. What is in one lease with the
    # first, at most a quarter of what is left, has to wait for it.
    rows = [{"n": n, "do": "wait" if n == 0 else None, "until": 300} for n in range(400)]
    data = write_input(tmp_path / "in.jsonl", rows)
    launch(Records(data, out, log=tmp_path / "log"), 2)
    assert read_rows(out) == doubled(400)
    begun = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert begun.count("0") == 1, "the first record waited in vain and was tried again"


def test_a_worker_that_never_ends_loading_leaves_its_records_to_the_others_and_does_not_hold_up_the_end(
    tmp_path: Path, out: Path
) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(20)))
    ended: list[float] = []

    class Watch:
        """Progress that notes when the last record was done."""

        def start(self, *, total: int, done: int) -> None: ...
        def stop(self) -> None: ...

        def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: object) -> None:
            ended.append(time.monotonic())

    run_job(Records(data, out, stop_loading=(1,)), RunOptions(workers=2, late_seconds=1.0), progress=Watch())
    assert read_rows(out) == doubled(20)
    assert ended[-1] - ended[-2] < 8, "the run waited for the worker that loads"


def test_equal_records_are_each_done(tmp_path: Path, out: Path) -> None:
    data = write_input(tmp_path / "in.jsonl", ({"n": 3, "id": "same"} for _ in range(50)))
    run(Records(data, out), 2)
    assert read_rows(out) == [{"n": 3, "twice": 6, "text": None}] * 50


@pytest.mark.parametrize(("do", "reason"), [("end", "was killed by SIGTERM"), ("leave", "ended with exit code 0")])
def test_a_worker_that_ends_while_there_is_work_is_replaced(tmp_path: Path, out: Path, do: str, reason: str) -> None:
    rows = [{"n": n, "do": do if n == 2 else None} for n in range(6)]
    data = write_input(tmp_path / "in.jsonl", rows)
    report = run(Records(data, out), 1)
    answers = read_rows(out)
    assert [row["n"] for row in answers] == list(range(6))
    assert [row["error"] for row in answers if "error" in row] == [
        f"line 3: the worker {reason} each time it ran this record, 2 times with no other."
    ]
    assert report.statistics.errors_by_class == {"WorkerDied": 1}


@pytest.mark.parametrize("records", [0, 5])
def test_all_ranks_end_when_nothing_is_left_to_do(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    """As under torchrun: an empty input, and a job that is complete already."""
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(records)))
    if records:
        run(Records(data, out), 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    reports: dict[int, JobReport | None] = {}

    def rank(number: int) -> None:
        reports[number] = run_job(Records(data, out), RunOptions(rank=Rank(number, 2)))

    other = threading.Thread(target=rank, args=(1,), daemon=True)
    other.start()
    rank(0)
    other.join(300)
    assert reports.keys() == {0, 1}, "rank 1 still waits"
    assert reports[0] is not None
    assert reports[0].completion.answered == records
    assert reports[1] is None
    assert read_rows(out) == doubled(records)


def test_a_job_that_cannot_begin_ends_on_all_ranks_with_the_reason(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next job of the same ranks finds all of them again."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    data = write_input(tmp_path / "in.jsonl", [])
    said: dict[int, list[str]] = {0: [], 1: []}

    def rank(number: int) -> None:
        for path in (tmp_path / "missing.jsonl", data):
            try:
                run_job(Records(path, out), RunOptions(rank=Rank(number, 2)))
                said[number].append("done")
            except ParallelMindError as error:
                said[number].append(str(error))

    other = threading.Thread(target=rank, args=(1,), daemon=True)
    other.start()
    rank(0)
    other.join(60)
    assert [texts[-1] for texts in said.values()] == ["done", "done"]
    assert "missing.jsonl does not exist" in said[0][0]
    assert "ended early: the input" in said[1][0]


def test_a_run_in_this_process_needs_no_system_calls_that_windows_lacks(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pread", "pwrite", "fork"):
        monkeypatch.delattr("os." + name)
    data = write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(5)))
    run(Records(data, out), 0)
    assert read_rows(out) == doubled(5)


@pytest.mark.slow
def test_a_lost_node_loses_no_record(tmp_path: Path, out: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=3, resources={"lost": 1})
    cluster.wait_for_nodes()
    data = write_input(tmp_path / "in.jsonl", ({"n": n, "text": "字"} for n in range(400)))
    removed = []

    class RemovesNode:
        """Progress that takes a node away after the first hundred records."""

        def start(self, *, total: int, done: int) -> None: ...
        def stop(self) -> None: ...

        def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: object) -> None:
            if done > 100 and not removed:
                removed.append(done)
                cluster.remove_node(node, allow_graceful=False)

    options = RunOptions(launcher="ray", ray_address=cluster.address, workers=6)
    run_job(Records(data, out, seconds=0.02), options, progress=RemovesNode())
    assert removed
    assert read_rows(out) == [{"n": n, "twice": 2 * n, "text": "字"} for n in range(400)]


def test_what_was_finished_is_stored_while_the_worker_works_on_something_else(tmp_path: Path, out: Path) -> None:
    """Killed as a whole, a run loses no result that is older than some milliseconds."""
    rows = [{"n": n, "do": "hang" if n == 5 else None} for n in range(6)]
    data = write_input(tmp_path / "in.jsonl", rows)
    with pytest.raises(KeyboardInterrupt):
        run_job(Records(data, out, seconds=0.05), RunOptions(workers=1), progress=Interrupting(after=5, seconds=1.0))
    stored = json.loads((out.with_name("out.jsonl.job") / "stats.json").read_text())
    assert stored["processed"] == 5


class Interrupting:
    """Progress that is interrupted some time after so many records are done."""

    def __init__(self, *, after: int, seconds: float) -> None:
        self._after, self._seconds, self._since = after, seconds, 0.0

    def start(self, *, total: int, done: int) -> None: ...
    def stop(self) -> None: ...

    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: object) -> None:
        if done >= self._after:
            self._since = self._since or time.monotonic()
            if time.monotonic() - self._since > self._seconds:
                self._seconds = 1e9
                raise KeyboardInterrupt
