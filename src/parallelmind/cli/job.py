"""`parallelmind job`: show a job, running or not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from parallelmind.jobs.results import OTHER_COUNTS
from parallelmind.jobs.view import JobView, WorkerView, view_job

EPILOG = """\
Everything is read from the job's ledger, the SQLite file OUTPUT.job/ledger.sqlite, which any SQLite tool can open, also
while the job runs:

  sqlite3 OUTPUT.job/ledger.sqlite "SELECT record, worker, attempt, error_class, output FROM latest LIMIT 5"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output of batch, contexts, answer or pipeline")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """Print the job; 0 whatever its state."""
    job = view_job(args.output)
    if args.json:
        print(json.dumps(dataclasses.asdict(job) | {"output": str(job.output)}, ensure_ascii=False, indent=1))
    else:
        print("\n".join(_lines(job)))
    return 0


def _lines(job: JobView) -> Iterator[str]:
    yield f"{job.output}: {job.kind}, {job.state}"
    left = job.records - job.done
    yield f"{job.records} records = {job.done - job.failed} successful + {job.failed} failed + {left} to do"
    if job.in_work:
        yield f"{job.in_work} records are with workers"
    if job.retryable:
        yield f"{job.retryable} of the failed records can be tried again"
    yield from map(_worker, job.workers)
    for name, count in job.errors_by_class.items():
        yield f"errors of class {name}: {count}"
    for number, reason in job.failures:
        yield f"failed: {reason if reason.startswith('line ') else f'record {number}: {reason}'}"
    for number, known in job.quarantine:
        yield f"in quarantine: record {number}: {known}"
    for name, value in job.settings.items():
        yield f"setting {name}: {json.dumps(value, ensure_ascii=False)}"
    for name, digest in job.files.items():
        yield f"files of {name}: {digest}"


def _worker(worker: WorkerView) -> str:
    name = "without a worker" if worker.rank is None else f"worker {worker.rank}"
    counted = {name.replace("_", " "): getattr(worker, name) for name in OTHER_COUNTS}
    others = "".join(f", {count} {name}" for name, count in counted.items() if count)
    return (
        f"{name}: {worker.records} records, {worker.failed} failed, {worker.mean_seconds:.3f} s a record, "
        f"{worker.tokens_in} tokens in, {worker.tokens_out} out{others}"
    )
