"""Batch inference: a JSONL file of records through a model, to a JSONL file of answers, resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from parallelmind.jobs.job import Job, WorkItem
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.progress import Progress
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.run import JobReport, RunOptions, run_job
from parallelmind.jobs.task import RecordWorker, WorkerInfo, Write
from parallelmind.tasks.batch_options import BatchOptions
from parallelmind.tasks.batch_worker import Backend, BatchWorker, lost_record
from parallelmind.tasks.job_engine import PREFIX_CACHE_BYTES, spread_over

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
    """Of the records in the parts, as the next."""
    prompt_tokens: int
    seconds: float
    """Of this run, without loading the model (on Ray with it)."""
    records_in_this_run: int


@dataclass(frozen=True)
class BatchTask:
    """Answers records with the engine."""

    options: BatchOptions
    load: Callable[[BatchOptions], Backend] | None = None
    """Makes model and engine; None: `load_backend`."""

    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        options = self.options
        backend = self.load(options) if self.load else load_backend(options, worker)
        return _BatchRecords(
            BatchWorker(
                backend,
                sampling=options.sampling(seed=None),
                limits=options.row_limits,
                seed=options.seed,
                num_workers=options.num_workers,
                on_step=alive,
            ),
            backend,
        )

    def failure(self, item: WorkItem, reason: str, error_class: str) -> Outcome:
        return lost_record(item, reason, error_class)


class _BatchRecords:
    def __init__(self, worker: BatchWorker, backend: Backend) -> None:
        self._worker = worker
        self._backend = backend

    def run(self, items: Iterable[WorkItem], write: Write) -> None:
        self._worker.run(items, write)

    def close(self) -> None:
        stats = self._backend.engine.stats
        _LOGGER.debug("%d tokens of main from the cache", stats.cached_main_tokens)


def run_batch(
    options: BatchOptions,
    *,
    progress: Progress | None = None,
    rank: Rank = SINGLE,
    run: RunOptions | None = None,
    load: Callable[[BatchOptions], Backend] | None = None,
) -> BatchReport | None:
    """Answer every record that has no answer yet, and put the output in place.

    `load` makes the model and engine; it is called only if there is something to answer. Of several ranks only the
    first one has a report.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    job = Job(
        kind="batch",
        input_path=options.data_path,
        out_path=options.out_path,
        settings=options.identity(),
        files=options.file_prints(),
        max_records=options.max_samples,
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
        input_from='; --data_path takes a JSONL file with rows such as {"main": "…", "branches": ["…"]}',
    )
    report = run_job(
        job,
        BatchTask(options, load),
        options=run or RunOptions(),
        rank=rank,
        progress=progress,
        on_open=lambda opened: _log_input(opened, options),
    )
    return None if report is None else _report(report)


def load_backend(options: BatchOptions, worker: WorkerInfo | None = None) -> Backend:
    """Load the model with its adapter, and make the engine.

    Raises:
        ParallelMindError: the model or adapter cannot be loaded or does not fit the settings.
    """
    from parallelmind.engine.loading import load_engine
    from parallelmind.prompts.encode import encode_branch, encode_main

    engine, loaded = load_engine(
        spread_over(options, worker),
        options.lora_path,
        max_running_branches=None if options.batch_by_samples else options.batch_size,
        max_running_requests=options.batch_size if options.batch_by_samples else None,
        prefix_cache_bytes=PREFIX_CACHE_BYTES,
        kv_cache_bytes=None if options.kv_cache_gb is None else int(options.kv_cache_gb * 2**30),
    )
    tokenizer, sees_main = loaded.tokenizer, loaded.settings.visibility != "strict"
    return Backend(
        engine=engine,
        encode_main=lambda text: encode_main(tokenizer, text),
        encode_branch=lambda text, has_main: encode_branch(tokenizer, text, has_main=has_main and sees_main),
    )


def _log_input(job: Job, options: BatchOptions) -> None:
    blank = f" (blank lines skipped: {job.input.blank_lines})" if job.input.blank_lines else ""
    _LOGGER.info("loaded %d records (数据集加载完成) from %s%s", job.input.records, options.data_path, blank)
    if not job.input.records:
        _LOGGER.warning("%s has no records: the output will be empty", options.data_path)
    if job.completion:
        _LOGGER.info("%s is complete already: nothing to do (--overwrite begins anew)", job.shown_path)
    elif job.resumed:
        left = job.input.records - job.resumed
        _LOGGER.info("continuing: %d of %d records have results, %d to do", job.resumed, job.input.records, left)


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
