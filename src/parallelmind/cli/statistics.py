"""The statistics of a job, for people: a block for each worker, then the total."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parallelmind.jobs.results import OTHER_COUNTS
from parallelmind.jobs.run import JobReport
from parallelmind.jobs.statistics import WorkerStatistics

_LINE = "=" * 60
_NOTHING = "none"
_FAILURES_SHOWN = 20


def print_statistics(report: JobReport, name: str, out_path: str | Path, rank_files: Mapping[int, Path]) -> None:
    """Print to stdout the statistics of each worker and the total.

    `rank_files` are the files that hold the rows of one worker alone; the rows of the others are in `out_path`.
    """
    statistics = report.statistics
    if statistics.records_in_this_run > 0:
        for rank in sorted({*statistics.workers, *range(report.world_size)}):
            worker = statistics.workers.get(rank, WorkerStatistics())
            saved = rank_files.get(rank, out_path) if worker.processed else _NOTHING
            _print_block(f"Worker {rank} {name} STATISTICS", worker, saved)
    completion = report.completion
    if statistics.processed:
        workers = len({*statistics.workers, *range(report.world_size)})
        _print_block(f"TOTAL {name} STATISTICS ({workers} workers)", statistics, out_path)
        percentiles = ", ".join(f"{key} {value:.3f}s" for key, value in statistics.seconds_percentiles.items())
        if lost := statistics.processed - sum(worker.processed for worker in statistics.workers.values()):
            print(f"Errors without a worker: {lost}")
        print(f"Seconds a record: {percentiles}")
        print(f"Tokens in / out: {statistics.tokens_in} / {statistics.tokens_out}")
        for counted in OTHER_COUNTS:
            print(f"{counted.replace('_', ' ').capitalize()}: {getattr(statistics, counted)}")
        for error, count in statistics.errors_by_class.items():
            print(f"Errors of class {error}: {count}")
        print(f"This run: {statistics.records_in_this_run} records, {statistics.seconds:.1f}s")
        print()
    print(f"{report.input.records} records = {completion.answered} successful + {completion.failed} errors")
    for line, reason in completion.failures[:_FAILURES_SHOWN]:
        print(f"failed: {reason if reason.startswith(f'line {line}') else f'line {line}: {reason}'}")
    if completion.retryable:
        print(f"{completion.retryable} of the errors can be tried again: start the same command once more.")


def _print_block(title: str, worker: WorkerStatistics, saved: str | Path) -> None:
    print(f"\n{title}")
    print(_LINE)
    print(f"Total contexts processed: {worker.processed}")
    print(f"Successful inferences: {worker.successful}")
    print(f"Errors: {worker.errors}")
    print(f"Success rate: {_rate(worker)}")
    print(f"Average inference time: {_seconds(worker.mean_seconds) if worker.processed else _NOTHING}")
    print(f"Results saved to: {saved}")


def _rate(worker: WorkerStatistics) -> str:
    """In percent; 100.0% and 0.0% only for all and for none, and nothing for a worker that had nothing to do."""
    if not worker.processed:
        return _NOTHING
    percent = round(100 * worker.success_rate, 1)
    if 0 < worker.successful < worker.processed:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f}%"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}s" if seconds >= 0.1 else f"{seconds:.4f}s"
