"""One run of a job, as its own process: python -m tests.chaos.launcher INPUT OUTPUT WORKERS [retry]."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from parallelmind.jobs.job import Job
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.run import RunOptions, run_job
from tests.jobs.tasks import Records


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    data, out, workers, *retry = sys.argv[1:]
    job = Job(kind="chaos", input_path=Path(data), out_path=Path(out), settings={}, retry_failed=bool(retry))
    report = run_job(
        job, Records(seconds=0.002, ahead=3), options=RunOptions(workers=int(workers)), rank=current_rank()
    )
    if report:
        print(f"{report.completion.answered} answered, {report.completion.failed} failed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
