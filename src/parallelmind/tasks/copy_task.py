"""The task that does nothing: every record becomes itself. For checking and measuring the jobs themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.task import Task, WorkerInfo, Write


@dataclass
class CopyTask(Task):
    """Copies the records; with `parse` each is parsed and serialised."""

    input_path: Path
    out_path: Path
    parse: bool = False

    kind = "copy"

    def settings(self) -> Mapping[str, Any]:
        return {}

    def moved(self, rows: bytes, line: int) -> bytes:
        return rows

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> CopyTask:
        return self

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        for line in lines:
            content = line.content
            parsed = RecordResult.of([json.loads(content)]) if self.parse else None
            write(line, parsed or RecordResult(payload=content + b"\n", rows=1))

    def close(self) -> None:
        """It holds nothing."""

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        return RecordResult.of([{"error": reason, "line": line.number}], error_class=error_class)
