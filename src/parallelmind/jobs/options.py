"""Where and how a job runs; never what it does."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from parallelmind.errors import SettingsError
from parallelmind.jobs import transports
from parallelmind.jobs.ranks import SINGLE, Rank

_NOT_ASKED_FOR = ("base", "here", "torchrun")
"""Modules of `transports` that are chosen by other means, or are none."""


def launchers() -> list[str]:
    """What a run may be asked to start its workers with."""
    return [module.name for module in pkgutil.iter_modules(transports.__path__) if module.name not in _NOT_ASKED_FOR]


def _nothing(rank: int) -> None:
    """No set-up."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run of a job is to go.

    Raises:
        SettingsError: a value is out of range.
    """

    launcher: str = "local"
    """What starts the workers: a module of `parallelmind.jobs.transports`."""
    ray_address: str | None = None
    """Of a running Ray cluster, such as "auto" or "ray://host:10001"; None: one on this machine, for this run."""
    workers: int = 0
    """How many to start; 0: none, the work is done in this process."""
    rank: Rank = SINGLE
    """Of this process, where torchrun has started several."""
    gpus_per_worker: int | None = None
    """None: all GPUs, divided evenly."""
    most_per_worker: int | None = None
    """Records that each worker works on at most, however fast it is; the job must hold no more than that for all."""
    total_gpus: int | None = None
    """The first so many of the visible GPUs are used; None: all of them. Of worker processes on this machine."""
    record_timeout: float = 600.0
    """Seconds without progress after which a worker process is replaced and its records are tried alone; 0: never."""
    prometheus_port: int | None = None
    set_up: Callable[[int], None] = _nothing
    """Called first in each worker process, with its rank."""
    retry_failed: bool = False
    """Try the records of an earlier run that failed once more, but for those that cannot succeed."""
    overwrite: bool = False
    """Drop what earlier runs did under the name that is asked for, and begin anew."""
    keep_larger: bool = False
    """Where a job on more records of the input stands already, the task's `max_records` is enough with it."""

    worker_files: bool = False
    """The rows of each of several workers also go to a file of its own."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise SettingsError(f"--workers is {self.workers}; it must be 0 (none, work in this process) or more.")
        if not self.record_timeout >= 0:
            raise SettingsError(f"--record_timeout is {self.record_timeout}; it must be 0 (never) or more seconds.")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 1:
            raise SettingsError(f"--gpus_per_worker is {self.gpus_per_worker}; it must be 1 or more.")
        if self.total_gpus is not None and self.total_gpus < 0:
            raise SettingsError(f"--total_gpus is {self.total_gpus}; it must be 0 (none: the CPU) or more.")
        if self.total_gpus is not None and self.launcher == "ray":
            raise SettingsError("--total_gpus is not for --launcher ray: Ray knows its GPUs; give --gpus_per_worker.")
        if self.rank.world_size > 1 and self.launcher != "local":
            raise SettingsError("--launcher ray starts workers itself; start it once, without torchrun.")
        if self.rank.world_size > 1 and self.workers > 1:
            raise SettingsError("--workers starts worker processes itself; leave it out under torchrun.")

    @property
    def world_size(self) -> int:
        """Workers of the run."""
        return max(self.rank.world_size, self.workers, 1)
