"""A job that doubles numbers, in this process: what tests of jobs work on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.run import JobReport, run_job
from parallelmind.jobs.task import Task, WorkerInfo, Write

Rows = list[dict[str, Any]]


def double(content: bytes) -> Rows:
    n = json.loads(content)["n"]
    return [{"twice": n + n, "of": "é", "line": n}, {"twice": -n - n}][: 1 + n % 2]


def fails_on(*bad: int) -> Callable[[bytes], Rows]:
    def work(content: bytes) -> Rows:
        n = json.loads(content)["n"]
        return [{"error": f"{n} is bad", "output": None}, {"n": n}] if n in bad else double(content)

    return work


@dataclass
class Doubling(Task):
    """Notes which records it was given."""

    input_path: Path
    out_path: Path
    given: Mapping[str, Any] = field(default_factory=lambda: {"a": 1})
    prints: Mapping[str, str] = field(default_factory=dict)
    max_records: int | None = None
    work: Callable[[bytes], Rows] = double
    shuffled: bool = False
    only: Sequence[int] | None = None
    """After these records it is interrupted."""
    done: list[int] = field(default_factory=list)

    kind = "test"

    def settings(self) -> Mapping[str, Any]:
        return self.given

    def files(self) -> Mapping[str, str]:
        return self.prints

    def moved(self, rows: bytes, line: int) -> bytes:
        return rows

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> Doubling:
        return self

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        taken = list(lines) if self.shuffled or self.only else lines
        if self.shuffled:
            random.Random(1).shuffle(taken)  # type: ignore[arg-type]
        for line in taken:
            if self.only is None or line.index in self.only:
                self.done.append(line.index)
                write(line, RecordResult.of(self.work(line.content)))
        if self.only is not None:
            raise KeyboardInterrupt

    def close(self) -> None: ...

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        return RecordResult.of([{"error": reason}], error_class=error_class)


@dataclass
class Start:
    """One start of the job, as often as it is asked for."""

    task: Doubling
    options: RunOptions
    report: JobReport | None = None

    def open(self) -> OpenJob:
        """To look at it, or to hold it while another one runs."""
        return OpenJob(self.task, self.options)

    def complete(self, work: Callable[[bytes], Rows] = double, shuffled: bool = False) -> list[int]:
        """Do what is to be done; return the numbers of the records that were."""
        self.task.work, self.task.shuffled, self.task.only, self.task.done = work, shuffled, None, []
        self.report = run_job(self.task, self.options)
        return sorted(self.task.done)

    def interrupt(self, *records: int, work: Callable[[bytes], Rows] = double) -> None:
        """Do these records, and be interrupted."""
        self.task.work, self.task.only = work, records
        try:
            run_job(self.task, self.options)
        except KeyboardInterrupt:
            return
        raise AssertionError("it was not interrupted")

    @property
    def out_path(self) -> Path:
        """What was written."""
        assert self.report
        return self.report.out_path


def job(
    data: Path,
    out: Path,
    settings: dict[str, Any] | None = None,
    *,
    files: Mapping[str, str] | None = None,
    max_records: int | None = None,
    **options: Any,
) -> Start:
    task = Doubling(data, out, given=settings or {"a": 1}, prints=files or {}, max_records=max_records)
    return Start(task, RunOptions(**options))


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def expected(work: Callable[[bytes], Rows] = double) -> Rows:
    return [row for n in range(10) for row in work(b'{"n": %d}' % n)]
