"""Batch inference: a JSONL file of records through a model, to a JSONL file of answers, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parallelmind.jobs.job import Job, WorkItem
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.spec import Completion
from parallelmind.pipelines.batch_worker import Backend, BatchWorker, Row
from parallelmind.pipelines.options import BatchOptions

__all__ = ["BatchReport", "Progress", "load_backend", "run_batch"]

_LOGGER = logging.getLogger(__name__)
_PREFIX_CACHE_BYTES = 2**29
"""Enough for mains that come again within some thousand records; more would make the job grow with the file."""


class Progress(Protocol):
    """Told how far the run is; called often, so it decides itself when to show something."""

    def start(self, *, total: int, done: int) -> None:
        """The model is ready; `done` of `total` records have a result from before."""

    def update(self, *, done: int, failed: int, generated_tokens: int) -> None:
        """Records done in all; records failed and tokens generated in this run."""

    def stop(self) -> None:
        """Nothing more will come, whether the run succeeded or not."""


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
    generations: int
    """Answers in the output."""
    failed_rows: int
    """Error rows in the output."""
    failures: list[tuple[int, str]]
    """(line, reason) of the first failed records."""
    generated_tokens: int
    """In this run, as the next three."""
    prompt_tokens: int
    cached_main_tokens: int
    seconds: float
    """Of decoding: without loading the model."""


def run_batch(
    options: BatchOptions,
    *,
    progress: Progress,
    rank: Rank = SINGLE,
    load: Callable[[BatchOptions], Backend] | None = None,
) -> BatchReport:
    """Answer every record that has no answer yet, and put the output in place.

    `load` makes the model and engine; it is called only if there is something to answer.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    with Job(
        kind="batch",
        input_path=options.data_path,
        out_path=options.out_path,
        settings=options.identity(),
        files=options.file_prints(),
        max_records=options.max_samples,
        retry_failed=options.retry_failed,
        overwrite=options.overwrite,
        rank=rank,
    ) as job:
        _log_input(job, options)
        if job.completion:
            return _report(job, job.completion, options, _Tally())
        tally = _Tally()
        if job.resumed < job.input.records:
            _answer(job, options, (load or load_backend)(options), progress, tally)
        return _report(job, job.finish(), options, tally)


@dataclass
class _Tally:
    """Counts of this run."""

    done: int = 0
    failed: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_main_tokens: int = 0
    seconds: float = 0.0


def _answer(job: Job, options: BatchOptions, backend: Backend, progress: Progress, tally: _Tally) -> None:
    stats = backend.engine.stats

    def write(item: WorkItem, rows: list[Row]) -> None:
        job.write(item, rows)
        tally.done += 1
        tally.failed += any("error" in row for row in rows)

    def show() -> None:
        progress.update(done=job.resumed + tally.done, failed=tally.failed, generated_tokens=stats.generated_tokens)

    worker = BatchWorker(
        backend,
        sampling=options.sampling,
        limits=options.row_limits,
        seed=options.seed,
        num_workers=options.num_workers,
        on_step=show,
    )
    progress.start(total=job.input.records, done=job.resumed)
    started = time.perf_counter()
    try:
        worker.run(job.pending(), write)
        show()
    finally:
        progress.stop()
    tally.seconds = time.perf_counter() - started
    tally.generated_tokens = stats.generated_tokens
    tally.prompt_tokens = stats.prompt_tokens
    tally.cached_main_tokens = stats.cached_main_tokens


def load_backend(options: BatchOptions) -> Backend:
    """Load the model with its adapter, and make the engine.

    Raises:
        ParallelMindError: the model or adapter cannot be loaded or does not fit the settings.
    """
    from parallelmind.data.encode import encode_branch, encode_main
    from parallelmind.engine.engine import Engine
    from parallelmind.models.cpu import optimize_for_cpu
    from parallelmind.models.loader import load_model_with_lora, resolve_device

    adapter = f" with the adapter {options.lora_path}" if options.lora_path else ""
    _LOGGER.info("loading %s%s", options.base_model, adapter)
    device, note = resolve_device(options.device)
    if note:
        _LOGGER.info("%s", note)
    loaded = load_model_with_lora(
        base_model=options.base_model,
        lora_path=options.lora_path,
        lora_rank=options.lora_rank,
        rope_2d_ratio=options.rope_2d_ratio,
        patch_rope=options.patch_rope,
        device=device,
        dtype=options.dtype,
        rope_2d_mode=options.rope_2d_mode,
        rope_2d_pairs=options.rope_2d_pairs,
        branch_stride=options.branch_stride,
        visibility=options.visibility,
    )
    model, tokenizer, _ = loaded
    for line in (*loaded.notes, *optimize_for_cpu(model)):
        _LOGGER.info("%s", line)
    sees_main = loaded.settings.visibility != "strict"
    engine = Engine(
        model,
        tokenizer,
        visibility=loaded.settings.visibility,
        branch_stride=loaded.settings.branch_stride,
        max_running_branches=None if options.batch_by_samples else options.batch_size,
        max_running_requests=options.batch_size if options.batch_by_samples else None,
        prefix_cache_bytes=_PREFIX_CACHE_BYTES,
        kv_cache_bytes=None if options.kv_cache_gb is None else int(options.kv_cache_gb * 2**30),
    )
    return Backend(
        engine=engine,
        encode_main=lambda text: encode_main(tokenizer, text),
        encode_branch=lambda text, has_main: encode_branch(tokenizer, text, has_main=has_main and sees_main),
    )


def _log_input(job: Job, options: BatchOptions) -> None:
    blank = f" (blank lines skipped: {job.input.blank_lines})" if job.input.blank_lines else ""
    _LOGGER.info("loaded %d records from %s%s", job.input.records, options.data_path, blank)
    if not job.input.records:
        _LOGGER.warning("%s has no records: the output will be empty", options.data_path)
    if job.completion:
        _LOGGER.info("%s is complete already: nothing to do (--overwrite begins anew)", options.out_path)
    elif job.resumed:
        left = job.input.records - job.resumed
        _LOGGER.info("continuing: %d of %d records have results, %d to do", job.resumed, job.input.records, left)


def _report(job: Job, completion: Completion, options: BatchOptions, tally: _Tally) -> BatchReport:
    return BatchReport(
        out_path=options.out_path,
        records=job.input.records,
        blank_lines=job.input.blank_lines,
        resumed=job.resumed,
        answered=completion.answered,
        failed=completion.failed,
        generations=completion.rows - completion.failed_rows,
        failed_rows=completion.failed_rows,
        failures=completion.failures,
        generated_tokens=tally.generated_tokens,
        prompt_tokens=tally.prompt_tokens,
        cached_main_tokens=tally.cached_main_tokens,
        seconds=tally.seconds,
    )
