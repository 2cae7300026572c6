"""A job that doubles numbers, by hand: what tests of jobs work on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallelmind.jobs.job import Job
from parallelmind.jobs.outcome import Outcome

Rows = list[dict[str, Any]]


def job(data: Path, out: Path, settings: dict[str, Any] | None = None, **options: Any) -> Job:
    return Job(kind="test", input_path=data, out_path=out, settings=settings or {"a": 1}, **options)


def double(content: bytes) -> Rows:
    n = json.loads(content)["n"]
    return [{"twice": n + n, "of": "é", "line": n}, {"twice": -n - n}][: 1 + n % 2]


def fails_on(*bad: int) -> Callable[[bytes], Rows]:
    def work(content: bytes) -> Rows:
        n = json.loads(content)["n"]
        return [{"error": f"{n} is bad", "output": None}, {"n": n}] if n in bad else double(content)

    return work


def complete(opened: Job, work: Callable[[bytes], Rows] = double, shuffled: bool = False) -> list[int]:
    """Do what is pending; return the numbers that were."""
    with opened as running:
        if running.completion:
            return []
        items = list(running.pending())
        if shuffled:
            random.Random(1).shuffle(items)
        for item in items:
            running.write(item, Outcome.of(work(item.line.content)))
        running.finish()
    return sorted(item.line.index for item in items)


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def expected(work: Callable[[bytes], Rows] = double) -> Rows:
    return [row for n in range(10) for row in work(b'{"n": %d}' % n)]
