"""Batch inference: a JSONL file of records through a model, to a JSONL file of answers, resumable."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult, encode_rows
from parallelmind.jobs.run import JobReport, run_job
from parallelmind.jobs.statistics import Progress
from parallelmind.jobs.task import RecordWorker, Task, WorkerInfo
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.tasks.batch_worker import Backend, BatchWorker, load_backend, lost_record

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What a run came to. The records reconcile: records = answered + failed."""

    out_path: Path
    records: int
    blank_lines: int
    resumed: int
    """Records that had their result from an earlier run."""
    answered: int
    """Records with an answer for every branch."""
    failed: int
    """Records with an error row."""
    retryable: int
    """Those of them that may succeed when they are tried again."""
    generations: int
    """Answers in the output."""
    failed_rows: int
    """Error rows in the output."""
    failures: list[tuple[int, str]]
    """(line, reason) of the first failed records."""
    generated_tokens: int
    """Of all records, as the next."""
    prompt_tokens: int
    seconds: float
    """Of this run, without loading the model."""
    records_in_this_run: int


class BatchTask(Task):
    """Answers records with the engine."""

    kind = "batch"
    input_hint = '; --data_path takes a JSONL file with rows such as {"main": "…", "branches": ["…"]}'

    def __init__(self, options: BatchOptions, load: Callable[[BatchOptions], Backend] | None = None) -> None:
        """`load` makes model and engine; None: `load_backend`."""
        self.options, self.load = options, load
        self.input_path, self.out_path, self.max_records = options.data_path, options.out_path, options.max_samples

    def settings(self) -> Mapping[str, Any]:
        return self.options.identity()

    def defaults(self) -> Mapping[str, Any]:
        return self.options.identity_defaults()

    def files(self) -> Mapping[str, str]:
        return self.options.file_prints()

    def moved(self, rows: bytes, line: int) -> bytes:
        return encode_rows([json.loads(row) | {"line": line} for row in rows.splitlines()])

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        options = self.options
        backend = self.load(options) if self.load else load_backend(options, worker)
        return BatchWorker(
            backend,
            sampling=options.sampling(seed=None),
            limits=options.row_limits,
            seed=options.seed,
            num_workers=options.num_workers,
            as_messages=options.as_messages,
            on_step=alive,
        )

    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        return lost_record(line, reason, error_class)


def run_batch(
    options: BatchOptions,
    *,
    progress: Progress | None = None,
    run: RunOptions | None = None,
    load: Callable[[BatchOptions], Backend] | None = None,
) -> BatchReport | None:
    """Answer every record that has no answer yet, and put the output in place.

    `load` makes the model and engine; it is called only if there is something to answer. Of several ranks only the
    first one has a report.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    run = dataclasses.replace(run or RunOptions(), retry_failed=options.retry_failed, overwrite=options.overwrite)
    report = run_job(BatchTask(options, load), run, progress=progress)
    return None if report is None else _report(report)


def _report(report: JobReport) -> BatchReport:
    completion, statistics = report.completion, report.statistics
    return BatchReport(
        out_path=report.out_path,
        records=report.input.records,
        blank_lines=report.input.blank_lines,
        resumed=report.resumed,
        answered=completion.answered,
        failed=completion.failed,
        retryable=completion.retryable,
        generations=completion.rows - completion.failed_rows,
        failed_rows=completion.failed_rows,
        failures=completion.failures,
        generated_tokens=statistics.tokens_out,
        prompt_tokens=statistics.tokens_in,
        seconds=statistics.seconds,
        records_in_this_run=statistics.records_in_this_run,
    )
