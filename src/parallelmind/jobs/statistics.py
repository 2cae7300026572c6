"""What a job came to in numbers: for people at its end, for programs as stats.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.index import BY_COORDINATOR, ResultIndex
from parallelmind.jobs.result import COUNTS, Counts

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class WorkerStatistics(Counts):
    """The records whose latest result one worker made."""

    processed: int = 0
    successful: int = 0
    errors: int = 0
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
    """Write the file so that it is whole at any moment."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(statistics.as_json(), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


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
