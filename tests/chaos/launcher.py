"""One run of a job, as its own process: python -m tests.chaos.launcher INPUT OUTPUT [OPTIONS AS JSON]."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.ranks import current_rank
from parallelmind.jobs.run import run_job
from tests.jobs.tasks import Records


def jump_with_the_clock(rank: int = 0) -> None:
    """Have the time of day jump by up to a day, forward and back, as it does where a clock is set."""
    of_day = time.time
    time.time = lambda: of_day() + random.uniform(-86_400, 86_400)


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    data, out, *more = sys.argv[1:]
    options = json.loads(more[0]) if more else {}
    if options.pop("clock_jumps", False):
        jump_with_the_clock()
        options["set_up"] = jump_with_the_clock
    task = Records(Path(data), Path(out), seconds=0.002, ahead=3)
    report = run_job(task, RunOptions(rank=current_rank(), **options))
    if report:
        print(f"{report.completion.answered} answered, {report.completion.failed} failed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
