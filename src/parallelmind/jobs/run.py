"""Run a job: in this process, with worker processes of its own, or as one rank of a larger run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from parallelmind.errors import JobError, SettingsError
from parallelmind.io.line_table import InputSummary
from parallelmind.jobs.board import BOARD_NAME, Board
from parallelmind.jobs.gpus import GpuShare, assign_gpus, count_gpus, shortage, visible_gpus
from parallelmind.jobs.head import Head, note_given_up
from parallelmind.jobs.job import Job
from parallelmind.jobs.launch import local_place, run_token
from parallelmind.jobs.metrics import serve_metrics
from parallelmind.jobs.progress import Progress, Silent
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.ray_run import RayOptions, run_on_ray
from parallelmind.jobs.spec import Completion
from parallelmind.jobs.statistics import JobStatistics, collect_statistics, save_statistics
from parallelmind.jobs.supervisor import Supervisor
from parallelmind.jobs.task import Task, WorkerInfo
from parallelmind.jobs.worker_process import Assignment
from parallelmind.jobs.worker_state import is_any_working

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_HEAD_SECONDS = 3600.0
_SHOW_SECONDS = 0.25
_STATISTICS_SECONDS = 5.0


def _nothing(rank: int) -> None:
    """No set-up."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a job runs; never what it does.

    Raises:
        SettingsError: a value is out of range.
    """

    workers: int = 0
    """Worker processes on this machine; 0: none, the work is done in this process."""
    gpus_per_worker: int | None = None
    """None: all GPUs, divided evenly."""
    most_per_worker: int | None = None
    """Records that each worker works on at most, however fast it is; the job must hold no more than that for all."""
    total_gpus: int | None = None
    """The first so many of the visible GPUs are used; None: all of them. Of worker processes on this machine."""
    record_timeout: float = 600.0
    """Seconds without progress after which a worker process is replaced and its records are tried alone; 0: never."""
    prometheus_port: int | None = None
    ray: str | None = None
    """Address of a Ray cluster to work on, "" for one on this machine; None: without Ray."""
    set_up: Callable[[int], None] = _nothing
    """Called first in each worker process."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise SettingsError(f"--workers is {self.workers}; it must be 0 (none, work in this process) or more.")
        if not self.record_timeout >= 0:
            raise SettingsError(f"--record_timeout is {self.record_timeout}; it must be 0 (never) or more seconds.")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 1:
            raise SettingsError(f"--gpus_per_worker is {self.gpus_per_worker}; it must be 1 or more.")
        if self.total_gpus is not None and self.total_gpus < 0:
            raise SettingsError(f"--total_gpus is {self.total_gpus}; it must be 0 (none: the CPU) or more.")
        if self.total_gpus is not None and self.ray is not None:
            raise SettingsError("--total_gpus is not for --launcher ray: Ray knows its GPUs; give --gpus_per_worker.")


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What a run came to. The records reconcile: records = answered + failed."""

    input: InputSummary
    completion: Completion
    out_path: Path
    """The output, which has another name than was asked for if another job stands under that."""
    resumed: int
    """Records that had their result from an earlier run."""
    statistics: JobStatistics
    world_size: int
    """Workers of this run."""


def run_job(
    job: Job,
    task: Task,
    *,
    options: RunOptions,
    rank: Rank = SINGLE,
    progress: Progress | None = None,
    on_open: Callable[[Job], None] = lambda job: None,
) -> JobReport | None:
    """Work on every record that has no result yet, and put the output in place.

    `on_open` is told of the job once its input was read. Of several ranks the first one returns the report, the others
    None when the job is complete.

    Raises:
        ParallelMindError: the input, a setting, the model or the output is wrong; what was done is kept.
    """
    if rank.world_size > 1:
        if options.ray is not None:
            raise SettingsError("--launcher ray starts workers itself; start it once, without torchrun.")
        if options.workers > 1:
            raise SettingsError("--workers starts worker processes itself; leave it out under torchrun.")
        token = run_token(rank)
        if rank.rank:
            _follow(job, task, options, rank, token)
            return None
    else:
        if options.total_gpus is not None and options.workers == 0:
            raise SettingsError("--total_gpus is for worker processes; give --workers 1 or more, or leave it out.")
        token = run_token(rank)
    with job:
        on_open(job)
        follower = _Follower(job, progress or Silent(), max(rank.world_size, options.workers, 1))
        if job.completion is not None:
            _release(job, rank, token)
            return follower.report(job.completion)
        _warn_of_more(job, options, rank)
        with _Metrics(options.prometheus_port, follower):
            if not job.todo().size:
                with follower:
                    completion = job.finish()
                _release(job, rank, token)
            elif options.ray is not None:
                with follower:
                    completion = run_on_ray(job, task, _ray_options(options), set_up=options.set_up, on_poll=follower)
            elif options.workers == 0 and rank.world_size == 1:
                completion = _run_here(job, task, follower)
            else:
                completion = _run_processes(job, task, options, rank, token, follower)
        return follower.report(completion)


def _warn_of_more(job: Job, options: RunOptions, rank: Rank) -> None:
    """A larger run that was interrupted is finished, also by fewer workers than it was begun for."""
    most, workers = options.most_per_worker, max(rank.world_size, options.workers, 1)
    if most is not None and (left := len(job.todo())) > most * workers:
        _LOGGER.warning(
            "%s was begun for %d records, of which %d are left: more than %d for each of %d workers",
            job.shown_path, job.input.records, left, most, workers,
        )  # fmt: skip


def _release(job: Job, rank: Rank, token: str) -> None:
    """Tell the other ranks of a run that there is nothing to do."""
    if rank.world_size > 1:
        Board(job.folder).begin(token, job.digest, job.input.records, state="complete")


def _ray_options(options: RunOptions) -> RayOptions:
    return RayOptions(
        address=options.ray or None,
        workers=max(options.workers, 1),
        gpus_per_worker=options.gpus_per_worker,
        record_timeout=options.record_timeout,
        keep_apart=options.most_per_worker is not None,
    )


def _run_here(job: Job, task: Task, follower: _Follower) -> Completion:
    worker = task.start(WorkerInfo(), follower)
    try:
        with follower:
            worker.run(job.pending(), job.write)
    finally:
        worker.close()
    return job.finish()


def _run_processes(
    job: Job, task: Task, options: RunOptions, rank: Rank, token: str, follower: _Follower
) -> Completion:
    world_size = rank.world_size if rank.world_size > 1 else options.workers
    ranks = [rank.rank] if rank.world_size > 1 else list(range(world_size))
    head = Head(job, task, run=token, world_size=world_size, keep_apart=options.most_per_worker is not None)
    head.prepare()
    gpus = visible_gpus(os.environ, count_gpus(), total=options.total_gpus)
    assignments = [
        _assignment(job, task, options, Rank(number, world_size), gpus, token, job.digest, job.input.records)
        for number in ranks
    ]
    supervisor = Supervisor(assignments, record_timeout=options.record_timeout)
    with follower.waiting():
        try:
            supervisor.start()
            return head.run(supervisor, follower)
        finally:
            supervisor.stop()


def _follow(job: Job, task: Task, options: RunOptions, rank: Rank, token: str) -> None:
    """One rank that is not the first: a worker process and whoever watches it."""
    launcher = os.getppid()
    until = time.monotonic() + _HEAD_SECONDS
    while (board := _board_of(job, token)) is None:
        if time.monotonic() > until or os.getppid() != launcher:
            raise JobError(f"rank 0 did not begin the job of {job.out_path}; its log says why.")
        time.sleep(_POLL_SECONDS)
    view = board.read()
    if view.state == "complete":
        return
    gpus = visible_gpus(os.environ, count_gpus(), total=options.total_gpus)
    supervisor = Supervisor(
        [_assignment(job, task, options, rank, gpus, token, view.digest, view.records)],
        record_timeout=options.record_timeout,
    )
    try:
        supervisor.start()
        while (view := board.read()).run == token and view.state == "working":
            supervisor.poll()
            note_given_up(job.folder, token, supervisor.gave_up)
            if os.getppid() != launcher:
                raise JobError("the launcher is gone; start the same command again: it continues where it was.")
            time.sleep(_POLL_SECONDS)
        supervisor.wait(30.0)
    finally:
        supervisor.stop()
    if view.run != token or view.state != "complete":
        raise JobError(f"the job of {job.out_path} ended early: {view.message or 'rank 0 is gone'}")


def _board_of(job: Job, token: str) -> Board | None:
    """The board that the first rank of this run has set up, under whichever name the job got."""
    for out_path in job.names():
        job.move_to(out_path)
        if (job.folder / BOARD_NAME).exists():
            board = Board(job.folder)
            if board.read().run == token:
                return board
        elif not (job.folder.exists() or out_path.exists()):
            return None
    return None


def _assignment(
    job: Job,
    task: Task,
    options: RunOptions,
    rank: Rank,
    visible: list[str],
    token: str,
    digest: bytes,
    records: int,
) -> Assignment:
    gpus = _gpus(rank, options, visible)
    return Assignment(
        task=task,
        input_path=job.input_path,
        folder=job.folder,
        run=token,
        digest=digest,
        records=records,
        info=WorkerInfo(rank=rank.rank, world_size=rank.world_size, gpus=gpus),
        incarnation=0,
        environment=_environment(rank, gpus),
        set_up=options.set_up,
    )


def _environment(rank: Rank, gpus: GpuShare | None) -> dict[str, str]:
    variables = dict(gpus.environment) if gpus else {}
    _, workers = local_place(rank)
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Workers that each start a thread for every core take turns on the cores and all become slower.
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    return variables


def _gpus(rank: Rank, options: RunOptions, names: list[str]) -> GpuShare | None:
    """The worker's share of the GPUs, which the log tells; None: there are none, and nobody asked for any."""
    if not names and options.gpus_per_worker is None and options.total_gpus is None:
        return None
    place, workers = local_place(rank)
    share = assign_gpus(place, workers, names, gpus_per_worker=options.gpus_per_worker)
    if place == 0 and (
        lacking := shortage(workers, len(names), gpus_per_worker=options.gpus_per_worker, total_gpus=options.total_gpus)
    ):
        _LOGGER.warning("%s", lacking)
    _LOGGER.info("worker %d: %s", rank.rank, share)
    return share


class _Follower:
    """Shows the progress of an open job and keeps its statistics."""

    def __init__(self, job: Job, progress: Progress, world_size: int) -> None:
        self._job = job
        self._world_size = world_size
        self._progress = progress
        self._started: float | None = None
        self._shown = 0.0
        self._saved = 0.0
        self._seconds = 0.0
        self._waits = False
        self._before = self._totals()
        self._by_worker = job.index.records_by_worker()
        self.statistics = self._collect()

    def waiting(self) -> _Follower:
        """The run begins once a worker has its model and works; loading is not part of its time."""
        self._waits = True
        return self

    def __enter__(self) -> _Follower:
        if not self._waits:
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            self._seconds = time.perf_counter() - self._started
            try:
                self._show()
            finally:
                self._progress.stop()
        self._save()

    def __call__(self) -> None:
        if self._started is None:
            if not self._job.index.done > self._job.resumed and not is_any_working(self._job.folder):
                return
            self._begin()
        now = time.monotonic()
        if now - self._shown >= _SHOW_SECONDS:
            self._shown = now
            self._show()
        if now - self._saved >= _STATISTICS_SECONDS:
            self._saved = now
            self._save()

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._progress.start(total=self._job.input.records, done=self._job.resumed)

    def report(self, completion: Completion) -> JobReport:
        return JobReport(
            input=self._job.input,
            completion=completion,
            out_path=self._job.shown_path,
            resumed=self._job.resumed,
            statistics=self.statistics,
            world_size=self._world_size,
        )

    def _show(self) -> None:
        self._job.refresh()
        failed, tokens = self._totals()
        done = self._job.index.done - self._job.index.reopened
        by_worker = self._job.index.records_by_worker()
        self._progress.update(
            done=done,
            failed=max(0, failed - self._before[0]),
            generated_tokens=tokens - self._before[1],
            by_worker={rank: max(0, count - self._by_worker.get(rank, 0)) for rank, count in by_worker.items()},
        )

    def _save(self) -> None:
        self.statistics = self._collect()
        save_statistics(self.statistics, self._job.folder / "stats.json")

    def _totals(self) -> tuple[int, int]:
        index = self._job.index
        return index.failed_records - index.reopened, int(index.tokens_out.sum(dtype="int64"))

    def _collect(self) -> JobStatistics:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        seconds = self._seconds or running
        return collect_statistics(self._job.index, seconds=seconds, resumed=self._job.resumed)


class _Metrics:
    """Serves the statistics while the job runs, if a port was given."""

    def __init__(self, port: int | None, follower: _Follower) -> None:
        self._stop = None if port is None else serve_metrics(port, lambda: follower.statistics)

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self._stop()
