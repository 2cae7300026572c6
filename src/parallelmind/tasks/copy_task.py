"""The task that does nothing: every record becomes itself. For checking and measuring the jobs themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parallelmind.jobs.job import WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.task import WorkerInfo, Write


@dataclass(frozen=True)
class CopyTask:
    """Copies records; with `parse` each is parsed and serialised."""

    parse: bool = False

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> CopyTask:
        return self

    def run(self, items: Iterable[WorkItem], write: Write) -> None:
        for item in items:
            content = item.line.content
            write(item, Outcome.of([json.loads(content)]) if self.parse else Outcome(payload=content + b"\n", rows=1))

    def close(self) -> None:
        """It holds nothing."""

    def failure(self, item: WorkItem, reason: str, error_class: str) -> Outcome:
        return Outcome.of([{"error": reason, "line": item.line.number}], error_class=error_class)
