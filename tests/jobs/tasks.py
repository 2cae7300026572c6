"""Tasks for worker processes: what they do to a record is said by the record itself."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import SettingsError
from parallelmind.jobs.job import Job, WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.run import JobReport, RunOptions, run_job
from parallelmind.jobs.task import WorkerInfo, Write


@dataclass(frozen=True)
class Records:
    """Doubles "n"; a record may also say {"do": "die" | "end" | "leave" | "hang" | "fail"}, or {"do": "wait",
    "until": records begun}."""

    seconds: float = 0.0
    ahead: int = 1
    """Records taken before the first of them is written."""
    log: Path | None = None
    """Gets a line for each record that is begun, with the number of records at hand."""
    refuse: tuple[int, ...] = ()
    """Ranks that cannot start."""
    crash_after: float | None = None
    """Loading kills the process after so many seconds."""

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> Records:
        if self.crash_after is not None:
            time.sleep(self.crash_after)
            os.kill(os.getpid(), signal.SIGKILL)
        if worker.rank in self.refuse:
            raise SettingsError(f"rank {worker.rank} has no model; get one.")
        return self

    def run(self, items: Iterable[WorkItem], write: Write) -> None:
        batch: list[WorkItem] = []
        for item in items:
            batch.append(item)
            if len(batch) >= self.ahead:
                self._finish(batch, write)
        self._finish(batch, write)

    def close(self) -> None: ...

    def failure(self, item: WorkItem, reason: str, error_class: str) -> Outcome:
        return Outcome.of([{"n": json.loads(item.line.content)["n"], "error": reason}], error_class=error_class)

    def _wait(self, begun: int) -> None:
        """Until so many records were begun by all workers together."""
        assert self.log
        for _ in range(3000):
            if len(self.log.read_text().splitlines()) >= begun:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{begun} records were not begun within a minute.")

    def _finish(self, batch: list[WorkItem], write: Write) -> None:
        at_hand = len(batch)
        while batch:
            item = batch[0]
            row = json.loads(item.line.content)
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{row['n']} {at_hand}\n")
            _do(row.get("do"))
            if row.get("do") == "wait":
                self._wait(row["until"])
            time.sleep(self.seconds)
            batch.pop(0)
            write(item, outcome(row))


def outcome(row: dict[str, Any]) -> Outcome:
    if row.get("do") == "fail":
        return Outcome.of([{"n": row["n"], "error": "it failed"}], error_class="Failed")
    return Outcome.of([{"n": row["n"], "twice": 2 * row["n"], "text": row.get("text")}], tokens_out=2, seconds=0.5)


def _do(what: str | None) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "end":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "leave":
        sys.exit(0)
    elif what == "hang":
        time.sleep(3600)


def write_input(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data: Path, out: Path, task: Records, workers: int, **options: Any) -> JobReport:
    """One run of the job with worker processes."""
    job = Job(kind="test", input_path=data, out_path=out, settings={})
    report = run_job(job, task, options=RunOptions(workers=workers, **options))
    assert report is not None
    return report


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
