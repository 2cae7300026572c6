"""Tasks for worker processes: what they do to a record is said by the record itself."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import SettingsError
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.run import JobReport, run_job
from parallelmind.jobs.task import Task, WorkerInfo, Write


@dataclass
class Records(Task):
    """Doubles "n".

    A record may also say {"do": "die" | "end" | "leave" | "stop" | "hang" | "fail" | "refuse" | "edit"}, or
    {"do": "wait", "until": records begun}.
    """

    input_path: Path
    out_path: Path
    seconds: float = 0.0
    ahead: int = 1
    """Records taken before the first of them is written."""
    log: Path | None = None
    """Gets a line for each record that is begun, with the number of records at hand and the rank."""
    refuse: tuple[int, ...] = ()
    """Ranks that cannot start."""
    crash_after: float | None = None
    """Loading kills the process after so many seconds."""
    stop_loading: tuple[int, ...] = ()
    """Ranks that stand still while they load."""
    slow_loading: float = 0.0
    """Seconds."""
    weights: Path | None = None
    """A file that the output depends on; "edit" edits it."""
    edit_as_it_loads: bool = False
    rank: int = 0

    kind = "test"

    def settings(self) -> Mapping[str, Any]:
        return {}

    def files(self) -> Mapping[str, str]:
        return {} if self.weights is None else {"weights": self.weights.read_text()}

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> Records:
        if self.crash_after is not None:
            time.sleep(self.crash_after)
            os.kill(os.getpid(), signal.SIGKILL)
        if worker.rank in self.stop_loading:
            os.kill(os.getpid(), signal.SIGSTOP)
        if worker.rank in self.refuse:
            raise SettingsError(f"rank {worker.rank} has no model; get one.")
        time.sleep(self.slow_loading)
        if self.edit_as_it_loads:
            self._edit()
        self.rank = worker.rank
        return self

    def _edit(self) -> None:
        assert self.weights
        self.weights.write_text(self.weights.read_text() + "2")

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        batch: list[JsonLine] = []
        for line in lines:
            batch.append(line)
            if len(batch) >= self.ahead:
                self._finish(batch, write)
        self._finish(batch, write)

    def close(self) -> None: ...

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        return RecordResult.of([{"n": json.loads(line.content)["n"], "error": reason}], error_class=error_class)

    def _wait(self, begun: int) -> None:
        """Until so many records were begun by all workers together."""
        assert self.log
        for _ in range(3000):
            if len(self.log.read_text().splitlines()) >= begun:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{begun} records were not begun within a minute.")

    def _finish(self, batch: list[JsonLine], write: Write) -> None:
        at_hand = len(batch)
        while batch:
            line = batch[0]
            row = json.loads(line.content)
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{row['n']} {at_hand} {self.rank}\n")
            _do(row.get("do"))
            if row.get("do") == "edit":
                self._edit()
            if row.get("do") == "wait":
                self._wait(row["until"])
            time.sleep(self.seconds)
            batch.pop(0)
            write(line, result(row))


def result(row: dict[str, Any]) -> RecordResult:
    if row.get("do") == "fail":
        return RecordResult.of([{"n": row["n"], "error": "it failed"}], error_class="Failed")
    return RecordResult.of([{"n": row["n"], "twice": 2 * row["n"], "text": row.get("text")}], tokens_out=2, seconds=0.5)


def _do(what: str | None) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(3600)  # another thread gets the signal
    elif what == "end":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "leave":
        sys.exit(0)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "hang":
        time.sleep(3600)
    elif what == "refuse":
        raise SettingsError("the key was revoked; get another.")


def write_input(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(task: Records, workers: int, **options: Any) -> JobReport:
    """One run of the job with worker processes."""
    report = run_job(task, RunOptions(workers=workers, **options))
    assert report is not None
    return report


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def doubled(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "twice": 2 * n, "text": None} for n in range(count)]
