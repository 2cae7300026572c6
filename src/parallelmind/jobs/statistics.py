"""How far a job is and what it came to, in numbers: shown while it runs and at its end, for programs as stats.json."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError
from parallelmind.io.atomic import replacing
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.results import BY_COORDINATOR, COUNTS, Counts, ResultIndex
from parallelmind.jobs.storage import storage_error

_LOGGER = logging.getLogger(__name__)
_PERCENTILES = (50, 90, 95, 99)
_SHOW_SECONDS = 0.25
_SAVE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How records ended."""

    processed: int = 0
    successful: int = 0
    errors: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerStatistics(Counts, Outcomes):
    """The records whose latest result one worker made."""

    mean_seconds: float = 0.0

    @property
    def success_rate(self) -> float:
        """Share of the processed records, from 0 to 1."""
        return self.successful / self.processed if self.processed else 0.0


@dataclass(frozen=True, kw_only=True)
class JobStatistics(WorkerStatistics):
    """All records of a job."""

    records: int
    seconds: float
    """Of this run."""
    records_in_this_run: int
    seconds_percentiles: dict[str, float]
    """Seconds a record took, "p50" to "p99"."""
    errors_by_class: dict[str, int]
    workers: dict[int, WorkerStatistics] = field(default_factory=dict)
    """By rank."""

    @property
    def records_per_second(self) -> float:
        """In this run."""
        return self.records_in_this_run / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON values, rates included."""
        content = asdict(self) | {"success_rate": self.success_rate, "records_per_second": self.records_per_second}
        content["workers"] = {
            str(rank): asdict(worker) | {"success_rate": worker.success_rate} for rank, worker in self.workers.items()
        }
        return content


def collect_statistics(index: ResultIndex, *, seconds: float, resumed: int) -> JobStatistics:
    """Count what is known of the results; `resumed` records had theirs before this run of `seconds`."""
    done = index.has_result
    chosen = index["seconds"][done]
    percentiles = np.percentile(chosen, _PERCENTILES).tolist() if len(chosen) else [0.0] * len(_PERCENTILES)
    classes, counts = np.unique(index["error_class"][done], return_counts=True)
    workers = {
        int(worker) - 1: WorkerStatistics(**_counts(index, done & (index.worker == worker)))
        for worker in np.unique(index.worker[done]).tolist()
        if worker != BY_COORDINATOR
    }
    return JobStatistics(
        **_counts(index, done),
        records=len(index),
        seconds=seconds,
        records_in_this_run=max(0, index.done - index.reopened - resumed),
        seconds_percentiles={f"p{name}": value for name, value in zip(_PERCENTILES, percentiles, strict=True)},
        errors_by_class={
            index.texts[number]: count
            for number, count in zip(classes.tolist(), counts.tolist(), strict=True)
            if number
        },
        workers=workers,
    )


def save_statistics(statistics: JobStatistics, path: Path) -> None:
    """Write the file so that it is whole at any moment.

    Raises:
        JobError: the disk is full or failing.
    """
    with replacing(path, storage_error) as temporary:
        temporary.write_text(json.dumps(statistics.as_json(), indent=1) + "\n", encoding="utf-8")


def _counts(index: ResultIndex, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    processed = int(np.count_nonzero(chosen))
    errors = int(np.count_nonzero(index["failed_rows"][chosen]))
    sums = {name: int(index[name][chosen].sum(dtype=np.int64)) for name in COUNTS}
    return {
        "processed": processed,
        "successful": processed - errors,
        "errors": errors,
        **sums,
        "mean_seconds": float(index["seconds"][chosen].mean()) if processed else 0.0,
    }


class Progress(Protocol):
    """Told how far the run is; called often, so it decides itself when to show something."""

    def start(self, *, total: int, done: int) -> None:
        """Work begins; `done` of `total` records have a result from before."""

    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None:
        """Records done in all; records failed, tokens generated, and records of each worker process in this run."""

    def stop(self) -> None:
        """Nothing more will come, whether the run succeeded or not."""


class Silent:
    """Shows nothing."""

    def start(self, *, total: int, done: int) -> None: ...
    def update(self, *, done: int, failed: int, generated_tokens: int, by_worker: Mapping[int, int]) -> None: ...
    def stop(self) -> None: ...


class Monitor:
    """Entered while the job runs; `poll` is to be called often."""

    def __init__(self, job: OpenJob, progress: Progress) -> None:
        self._job = job
        self._progress = progress
        self._started: float | None = None
        self._seconds = 0.0
        self._shown = self._saved = 0.0
        self._is_told_of_failure = False
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

    def poll(self, has_begun: bool) -> None:
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
        try:
            save_statistics(self.statistics, self._job.folder / "stats.json")
        except JobError as error:  # a by-product, for which no result is given up
            if not self._is_told_of_failure:
                _LOGGER.warning("the statistics are not saved: %s", error)
            self._is_told_of_failure = True

    def _totals(self) -> tuple[int, int]:
        index = self._job.index
        return index.failed - index.reopened, int(index["tokens_out"].sum(dtype="int64"))

    def _collect(self) -> JobStatistics:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return collect_statistics(self._job.index, seconds=self._seconds or running, resumed=self._job.resumed)
