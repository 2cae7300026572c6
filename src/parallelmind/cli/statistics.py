"""The statistics of a job, for people: a block for each worker, then the total."""

from __future__ import annotations

from pathlib import Path

from parallelmind.jobs.run import JobReport
from parallelmind.jobs.statistics import WorkerStatistics

__all__ = ["print_statistics"]

_LINE = "=" * 60
_FAILURES_SHOWN = 20


def print_statistics(report: JobReport, name: str, out_path: str | Path) -> None:
    """Print to stdout what each worker came to and what all of them did."""
    statistics = report.statistics
    if statistics.records_in_this_run:
        for rank in sorted({*statistics.workers, *range(report.world_size)}):
            worker = statistics.workers.get(rank, WorkerStatistics.none())
            _print_block(f"Worker {rank} {name} STATISTICS", worker, out_path)
    completion = report.completion
    if statistics.processed:
        _print_block(f"TOTAL {name} STATISTICS ({report.world_size} workers)", statistics, out_path)
        percentiles = ", ".join(f"{key} {value:.3f}s" for key, value in statistics.seconds_percentiles.items())
        print(f"Seconds a record:        {percentiles}")
        print(f"Tokens in / out:         {statistics.tokens_in} / {statistics.tokens_out}")
        print(f"Retries:                 {statistics.retries}")
        for error, count in statistics.errors_by_class.items():
            print(f"Errors of class {error}: {count}")
        print(f"This run:                {statistics.records_in_this_run} records, {statistics.seconds:.1f}s")
    print(f"{report.input.records} records = {completion.answered} successful + {completion.failed} errors")
    for line, reason in completion.failures[:_FAILURES_SHOWN]:
        print(f"failed: {reason if reason.startswith(f'line {line}') else f'line {line}: {reason}'}")
    if completion.retryable:
        print(f"{completion.retryable} of the errors can be tried again: start the same command once more.")


def _print_block(title: str, worker: WorkerStatistics, out_path: str | Path) -> None:
    print(_LINE)
    print(title)
    print(_LINE)
    print(f"Contexts processed:      {worker.processed}")
    print(f"Successful:              {worker.successful}")
    print(f"Errors:                  {worker.errors}")
    print(f"Success rate:            {worker.success_rate:.2%}")
    print(f"Average inference time:  {worker.mean_seconds:.3f}s")
    print(f"Results saved to:        {out_path}")
