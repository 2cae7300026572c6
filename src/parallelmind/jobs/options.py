"""Where and how a job runs; never what it does."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from parallelmind.errors import SettingsError
from parallelmind.jobs import transports
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.settings.setting import Flag, Setting, Settings

_NOT_ASKED_FOR = ("base", "here", "torchrun")
"""Modules of `transports` that are chosen by other means, or are none."""


def launchers() -> tuple[str, ...]:
    """What a run may be asked to start its workers with."""
    found = (module.name for module in pkgutil.iter_modules(transports.__path__))
    return tuple(name for name in found if name not in _NOT_ASKED_FOR)


def _nothing(rank: int) -> None:
    """No set-up."""


_GROUP = "workers"
LATE_SECONDS = 60.0

Workers = Annotated[
    int,
    Ge(0),
    Setting(
        "worker processes on this machine; 0 works in this process; leave it out under torchrun", _GROUP, identity=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """How a run of a job is to go.

    Raises:
        SettingsError: a value is out of range, or two do not go together.
    """

    launcher: Annotated[
        str, Setting("where the workers run: on this machine, or on a Ray cluster", _GROUP, choices=launchers())
    ] = "local"
    """What starts the workers: a module of `parallelmind.jobs.transports`."""
    ray_address: Annotated[
        str | None,
        Setting(
            "address of a running Ray cluster, such as auto", _GROUP, default="one is started on this machine",
            flag=Flag(metavar="ADDRESS"),
        ),
    ] = None  # fmt: skip
    workers: Workers = 0
    gpus_per_worker: Annotated[
        int | None,
        Ge(1),
        Setting("GPUs of each worker, shared if there are too few", _GROUP, default="all of them, divided evenly"),
    ] = None
    total_gpus: Annotated[
        int | None, Ge(0), Setting("use the first N of the visible GPUs, 0 the CPU", _GROUP, default="all of them")
    ] = None
    record_timeout: Annotated[
        float,
        Ge(0),
        Setting(
            "replace a worker that makes no progress for so long, and try its records one by one; 0: never", _GROUP,
            flag=Flag(metavar="SECONDS"),
        ),
    ] = 600.0  # fmt: skip
    prometheus_port: Annotated[
        int | None,
        Ge(0),
        Le(65535),
        Setting("serve Prometheus metrics of the job on this port of 127.0.0.1", _GROUP, flag=Flag(metavar="PORT")),
    ] = None

    rank: Rank = SINGLE
    """Of this process, where torchrun has started several."""
    most_per_worker: int | None = None
    """Records that each worker works on at most, however fast it is; the job must hold no more than that for all."""
    late_seconds: float = LATE_SECONDS
    """A worker that takes nothing so long after the first one did, as its model still loads, is not waited for."""
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
        super().__post_init__()
        if self.ray_address is not None and self.launcher != "ray":
            raise SettingsError("--ray_address is for --launcher ray; give that, or leave it out.")
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
