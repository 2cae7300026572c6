"""What there is to see of a job, running or not: read from its ledger, which stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallelmind.errors import JobError
from parallelmind.io.locks import is_locked
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.quarantine import Suspicion
from parallelmind.jobs.results import COUNTS, Counts
from parallelmind.jobs.sqlite_file import NoJobYetError, damaged
from parallelmind.jobs.storage import job_folder, ledger_path, lock_path

_FAILURES_SHOWN = 20
_LATEST = (
    "(SELECT max(id) AS newest FROM results WHERE record IS NOT NULL GROUP BY record)"
    " JOIN results ON results.id = newest"
)


@dataclass(frozen=True, kw_only=True)
class WorkerView(Counts):
    """What one worker did; rank None: the coordinator, for records that no worker survived."""

    rank: int | None
    records: int
    failed: int
    mean_seconds: float


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job at this moment."""

    output: Path
    kind: str
    state: Literal["running", "interrupted", "complete"]
    records: int
    done: int
    failed: int
    retryable: int
    """Failed records that can be tried again."""
    in_work: int
    """Records that are leased to workers."""
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    workers: list[WorkerView]
    errors_by_class: dict[str, int]
    failures: list[tuple[int, str]]
    """(record from 1, reason) of the first failed records."""
    quarantine: list[tuple[int, str]]
    """(record from 1, what is known against it)."""


def view_job(out_path: Path) -> JobView:
    """Look at the job that writes or wrote this output.

    Raises:
        JobError: there is none, or its ledger is damaged.
    """
    folder = job_folder(out_path)
    path = ledger_path(folder)
    if not path.exists():
        raise JobError(f"{out_path} has no job: {path} does not exist; give the output of a job.")
    if is_locked(lock_path(folder)):
        just_begun = JobError(f"the job of {out_path} has just begun; look again in a moment.")
    else:
        just_begun = JobError(f"the job of {out_path} did not get far enough to be shown; start its command again.")
    try:
        ledger = Ledger(path, read_only=True)
    except NoJobYetError:
        raise just_begun from None
    try:
        job = ledger.job()
        if job is None:
            raise just_begun
        done, failed, retryable = ledger.ask(
            "SELECT count(*), coalesce(sum(failed_rows > 0), 0), coalesce(sum(failed_rows > 0 AND NOT final), 0)"
            f" FROM {_LATEST}"
        )[0]
        if job.completion and done < job.input.records:
            raise damaged(path, f"{job.input.records - done} results of a complete job are missing")
        sums = ", ".join(f"sum({name})" for name in COUNTS)
        workers = ledger.ask(
            f"SELECT worker, count(*), sum(failed_rows > 0), avg(seconds), {sums}"
            f" FROM {_LATEST} GROUP BY worker ORDER BY worker"
        )
        classes = ledger.ask(
            f"SELECT error_class, count(*) FROM {_LATEST} WHERE failed_rows > 0 GROUP BY error_class ORDER BY 2 DESC"
        )
        quarantine = [(record + 1, _known(suspicion)) for record, suspicion in ledger.quarantine().items()]
        return JobView(
            output=out_path,
            kind=job.identity.kind,
            state="complete" if job.completion else "running" if is_locked(lock_path(folder)) else "interrupted",
            records=job.input.records,
            done=done,
            failed=failed,
            retryable=retryable,
            in_work=sum(len(records) for _, records in ledger.leases()),
            settings=job.identity.settings,
            files=job.identity.files,
            workers=[
                WorkerView(
                    rank=rank, records=count, failed=bad, mean_seconds=mean, **dict(zip(COUNTS, counts, strict=True))
                )
                for rank, count, bad, mean, *counts in workers
            ],
            errors_by_class=dict(classes),
            failures=job.completion.failures if job.completion else _failures(ledger),
            quarantine=quarantine,
        )
    finally:
        ledger.close()


def _failures(ledger: Ledger) -> list[tuple[int, str]]:
    found = ledger.ask(
        f"SELECT record, error_class, output FROM latest WHERE failed_rows > 0 ORDER BY record LIMIT {_FAILURES_SHOWN}"
    )
    return [(record + 1, _reason(rows) or error_class) for record, error_class, rows in found]


def _reason(rows: str | None) -> str:
    """The first error of some rows; "" if they stand in a finished output."""
    errors = (json.loads(row).get("error") for row in (rows or "").split("\n") if row)
    return next((str(error) for error in errors if error is not None), "")


def _known(suspicion: Suspicion) -> str:
    counts = {
        "with others": suspicion.together,
        "alone": suspicion.alone,
        "in a run that was killed as a whole": suspicion.lost,
    }
    times = ", ".join(f"{count} times {how}" for how, count in counts.items() if count)
    return f"a worker was lost while it had this record ({times})" + (
        f": it {suspicion.reason}" if suspicion.reason else ""
    )
