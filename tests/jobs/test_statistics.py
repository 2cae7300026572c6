"""The numbers of a job, from what is known of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelmind.jobs.results import BY_COORDINATOR, MEASURES, RecordResult, ResultIndex
from parallelmind.jobs.statistics import WorkerStatistics, collect_statistics, save_statistics


def add(index: ResultIndex, record: int, *, rank: int | None = None, attempt: int = 1, **measures: Any) -> None:
    result = RecordResult(payload=b"", rows=1, **measures)
    assert result._fields[1:] == MEASURES
    index.add(
        np.array([record]),
        block=1,
        offset=np.zeros(1),
        size=np.zeros(1),
        attempt=np.array([attempt]),
        worker=BY_COORDINATOR if rank is None else rank + 1,
        measures=[[value] for value in result[1:]],
    )


@pytest.fixture
def index() -> ResultIndex:
    """5 records: two of worker 0, a failed one of worker 1, one that the coordinator gave up, one without a result."""
    index = ResultIndex(5)
    add(index, 0, rank=0, tokens_in=10, tokens_out=1, seconds=1.0)
    add(index, 2, rank=0, tokens_in=20, tokens_out=2, seconds=3.0, retries=4)
    add(index, 1, rank=1, tokens_in=5, seconds=2.0, failed_rows=1, error_class="http_500")
    add(index, 3, failed_rows=1, error_class="WorkerDied")
    return index


def test_the_counts(index: ResultIndex) -> None:
    found = collect_statistics(index, seconds=2.0, resumed=1)
    counts = (found.records, found.processed, found.successful, found.errors, found.records_in_this_run)
    assert counts == (5, 4, 2, 2, 3)
    assert (found.tokens_in, found.tokens_out, found.retries, found.mean_seconds) == (35, 3, 4, 1.5)
    assert found.errors_by_class == {"WorkerDied": 1, "http_500": 1}
    assert (found.success_rate, found.records_per_second) == (0.5, 1.5)
    assert found.seconds_percentiles == {
        "p50": 1.5, "p90": pytest.approx(2.7), "p95": pytest.approx(2.85), "p99": pytest.approx(2.97)
    }  # fmt: skip
    assert found.workers == {  # the record that the coordinator gave up is of no worker
        0: WorkerStatistics(
            processed=2, successful=2, errors=0, tokens_in=30, tokens_out=3, retries=4, mean_seconds=2.0
        ),
        1: WorkerStatistics(
            processed=1, successful=0, errors=1, tokens_in=5, tokens_out=0, retries=0, mean_seconds=2.0
        ),
    }


def test_of_two_attempts_the_later_counts(index: ResultIndex) -> None:
    index.reopen_failed()
    add(index, 1, rank=0, attempt=2, tokens_out=7, seconds=2.0)
    found = collect_statistics(index, seconds=1.0, resumed=2)
    assert (found.successful, found.errors, found.errors_by_class) == (3, 1, {"WorkerDied": 1})
    assert {rank: worker.processed for rank, worker in found.workers.items()} == {0: 3}
    assert found.records_in_this_run == 1  # of the 2 that failed, 1 was tried again


def test_a_job_without_results_has_no_rates() -> None:
    found = collect_statistics(ResultIndex(3), seconds=0.0, resumed=0)
    assert (found.processed, found.success_rate, found.records_per_second, found.mean_seconds) == (0, 0.0, 0.0, 0.0)
    assert found.seconds_percentiles == {"p50": 0.0, "p90": 0.0, "p95": 0.0, "p99": 0.0}


def test_sums_beyond_32_bits() -> None:
    index = ResultIndex(2)
    for record in range(2):
        add(index, record, rank=0, tokens_in=2**32 - 1)
    assert collect_statistics(index, seconds=1.0, resumed=0).tokens_in == 2 * (2**32 - 1)


def test_the_file(index: ResultIndex, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    save_statistics(collect_statistics(index, seconds=2.0, resumed=0), path)
    stored = json.loads(path.read_text())
    assert list(stored) == [
        "processed", "successful", "errors", "tokens_in", "tokens_out", "retries", "mean_seconds", "records", "seconds",
        "records_in_this_run", "seconds_percentiles", "errors_by_class", "workers", "success_rate",
        "records_per_second",
    ]  # fmt: skip
    assert stored["workers"]["1"] == {
        "processed": 1, "successful": 0, "errors": 1, "tokens_in": 5, "tokens_out": 0, "retries": 0,
        "mean_seconds": 2.0, "success_rate": 0.0,
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["stats.json"]


def test_numbers_that_do_not_fit_are_the_largest_that_do() -> None:
    index = ResultIndex(1)
    add(index, 0, rank=0, attempt=10**6, tokens_in=2**40)
    assert (index.attempt[0], index["tokens_in"][0]) == (2**16 - 1, 2**32 - 1)
