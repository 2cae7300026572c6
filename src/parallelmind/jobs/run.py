"""Run a job: in this process, or with workers that a transport reaches."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallelmind.errors import ParallelMindError, SettingsError
from parallelmind.io.line_table import InputSummary
from parallelmind.jobs.coordinator import Coordinator
from parallelmind.jobs.identity import JobCompletion
from parallelmind.jobs.metrics import serve_metrics
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.statistics import JobStatistics, Monitor, Progress, Silent
from parallelmind.jobs.task import Task
from parallelmind.jobs.transports.base import MakeTransport
from parallelmind.jobs.transports.torchrun import ending_with_launcher, follow, next_job, release
from parallelmind.jobs.worker_files import check_worker_files, write_worker_files

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What a run came to. The records reconcile: records = answered + failed."""

    input: InputSummary
    completion: JobCompletion
    out_path: Path
    """The output, which has another name than was asked for if another job stands under that."""
    resumed: int
    """Records that had their result from an earlier run."""
    statistics: JobStatistics
    world_size: int
    """Workers of this run."""


def run_job(task: Task, options: RunOptions, *, progress: Progress | None = None) -> JobReport | None:
    """Work on every record that has no result yet, and put the output in place.

    Of several ranks the first one returns the report, the others None when the job is complete.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    if options.total_gpus is not None and options.workers == 0 and options.rank.world_size == 1:
        raise SettingsError("--total_gpus is for worker processes; give --workers 1 or more, or leave it out.")
    with ending_with_launcher(options.rank):
        return _run(task, options, progress)


def _run(task: Task, options: RunOptions, progress: Progress | None) -> JobReport | None:
    if options.rank.world_size > 1:
        next_job(options.rank)
    if options.rank.rank:
        follow(task, options)
        return None
    try:
        opened = OpenJob(task, options)
    except ParallelMindError as error:
        with contextlib.suppress(SettingsError):  # nobody to tell: the ranks have no launcher
            release(task, options, str(error))
        raise
    with opened as job:
        if options.worker_files:
            check_worker_files(
                job.shown_path,
                read=task.source or job.input.path,
                world_size=options.world_size,
                overwrite=options.overwrite,
            )
        _tell(job)
        monitor = Monitor(job, progress or Silent())
        if job.completion is None:
            _warn_of_more(job, options)
            with _metrics(options.prometheus_port, monitor), monitor:
                _work(job, options, monitor)
                job.finish()
        else:
            release(task, options)
        assert job.completion
        if options.worker_files:
            write_worker_files(job, world_size=options.world_size)
        return JobReport(
            input=job.summary,
            completion=job.completion,
            out_path=job.shown_path,
            resumed=job.resumed,
            statistics=monitor.statistics,
            world_size=options.world_size,
        )


def _tell(job: OpenJob) -> None:
    summary, noun = job.summary, job.task.noun
    blank = f" (blank lines skipped: {summary.blank_lines})" if summary.blank_lines else ""
    _LOGGER.info("loaded %d %s (数据集加载完成) from %s%s", summary.records, noun, job.input.path, blank)
    if not summary.records:
        _LOGGER.warning("%s has no %s: the output will be empty", job.input.path, noun)
    if job.completion:
        _LOGGER.info("%s is complete already: nothing to do (--overwrite begins anew)", job.shown_path)
    elif job.resumed:
        left = summary.records - job.resumed
        _LOGGER.info(
            "continuing: %d of %d %s have results, %d to do", job.resumed, summary.records, noun, left
        )  # fmt: skip


def _warn_of_more(job: OpenJob, options: RunOptions) -> None:
    """A larger run that was interrupted is finished, also by fewer workers than it was begun for."""
    most, workers = options.most_per_worker, options.world_size
    if most is not None and (left := len(job.todo())) > most * workers:
        _LOGGER.warning(
            "%s was begun for %d records, of which %d are left: more than %d for each of %d workers",
            job.shown_path, len(job.input), left, most, workers,
        )  # fmt: skip


def _work(job: OpenJob, options: RunOptions, monitor: Monitor) -> None:
    coordinator = Coordinator(
        job,
        world_size=options.world_size,
        record_timeout=options.record_timeout,
        keep_apart=options.most_per_worker is not None,
        late=options.late_seconds,
    )

    if coordinator.is_over:
        monitor.begin()
        release(job.task, options)
    elif make := _transport(job.task, options):
        coordinator.run(make, monitor.poll)
    else:
        coordinator.work_here(monitor.poll)


def _transport(task: Task, options: RunOptions) -> MakeTransport | None:
    """What reaches the workers; None: there are none, and the work is done here."""
    if options.rank.world_size > 1:
        name = "torchrun"
    elif options.launcher == "local" and not options.workers:
        return None
    else:
        name = options.launcher
    module = importlib.import_module(f"parallelmind.jobs.transports.{name}")
    make: MakeTransport = module.transport(task, options)
    return make


@contextlib.contextmanager
def _metrics(port: int | None, monitor: Monitor) -> Iterator[None]:
    """Serve the statistics while the job runs, if a port was given."""
    if port is None:
        yield
        return
    stop = serve_metrics(port, lambda: monitor.statistics)
    try:
        yield
    finally:
        stop()
