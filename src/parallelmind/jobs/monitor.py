"""Shows the progress of an open job and keeps its statistics."""

from __future__ import annotations

import time
from types import TracebackType

from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.progress import Progress
from parallelmind.jobs.statistics import JobStatistics, collect_statistics, save_statistics

_SHOW_SECONDS = 0.25
_SAVE_SECONDS = 5.0


class Monitor:
    """Entered while the job runs; `poll` is to be called often."""

    def __init__(self, job: OpenJob, progress: Progress) -> None:
        self._job = job
        self._progress = progress
        self._started: float | None = None
        self._seconds = 0.0
        self._shown = self._saved = 0.0
        self._failed_before, self._tokens_before = self._totals()
        self._by_worker_before = job.index.records_by_worker()
        self.statistics: JobStatistics = self._collect()

    def __enter__(self) -> Monitor:
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

    def poll(self, *, has_begun: bool) -> None:
        """The run begins once a worker has its model and works; loading is not part of its time."""
        if self._started is None:
            if not has_begun:
                return
            self.begin()
        now = time.monotonic()
        if now - self._shown >= _SHOW_SECONDS:
            self._shown = now
            self._show()
        if now - self._saved >= _SAVE_SECONDS:
            self._saved = now
            self._save()

    def begin(self) -> None:
        """The time of the run begins."""
        if self._started is None:
            self._started = time.perf_counter()
            self._progress.start(total=len(self._job.input), done=self._job.resumed)

    def _show(self) -> None:
        index = self._job.index
        failed, tokens = self._totals()
        self._progress.update(
            done=index.done - index.reopened,
            failed=max(0, failed - self._failed_before),
            generated_tokens=tokens - self._tokens_before,
            by_worker={
                rank: max(0, count - self._by_worker_before.get(rank, 0))
                for rank, count in index.records_by_worker().items()
            },
        )

    def _save(self) -> None:
        self.statistics = self._collect()
        save_statistics(self.statistics, self._job.folder / "stats.json")

    def _totals(self) -> tuple[int, int]:
        index = self._job.index
        return index.failed - index.reopened, int(index["tokens_out"].sum(dtype="int64"))

    def _collect(self) -> JobStatistics:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return collect_statistics(self._job.index, seconds=self._seconds or running, resumed=self._job.resumed)
