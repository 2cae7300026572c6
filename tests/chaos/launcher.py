"""One run of a job, as its own process: python -m tests.chaos.launcher INPUT OUTPUT WORKERS [retry]."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.run import run_job
from tests.jobs.tasks import Records


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    data, out, workers, *retry = sys.argv[1:]
    task = Records(Path(data), Path(out), seconds=0.002, ahead=3)
    report = run_job(task, RunOptions(workers=int(workers), rank=current_rank(), retry_failed=bool(retry)))
    if report:
        print(f"{report.completion.answered} answered, {report.completion.failed} failed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
