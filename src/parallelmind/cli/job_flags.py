"""The flags of every command that runs a job: worker processes, progress, metrics."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from parallelmind.cli.flags import given
from parallelmind.cli.stderr import configure_logging
from parallelmind.io.remote_files import LocalCopies
from parallelmind.jobs.options import RunOptions, Workers
from parallelmind.jobs.ranks import Rank, current_rank
from parallelmind.settings.setting import Flag, Setting


@dataclass(frozen=True, kw_only=True)
class JobRunOptions(RunOptions):
    """How a command runs its job; the output does not depend on it."""

    workers: Workers = 1
    work_dir: Annotated[
        Path,
        Setting(
            "folder for copies of remote files (s3://, gs://, hf://) and the state of their job", "workers",
            flag=Flag(metavar="DIR"),
        ),
    ] = Path(".parallelmind")  # fmt: skip
    log_interval: Annotated[
        float,
        Ge(0),
        Setting(
            "seconds between progress lines when stderr is not a terminal", "workers", flag=Flag(metavar="SECONDS")
        ),
    ] = 10.0


class JobFiles:
    """Local stand-ins of the input and the output of a job, each of which may be a remote file.

    Raises:
        ParallelMindError: a remote file cannot be read.
    """

    def __init__(self, run: JobRunOptions, data: str | Path, out: str | Path) -> None:
        self._copies = LocalCopies(run.work_dir)
        self._out = out
        self.data = self._copies.input(data) if run.rank.rank == 0 else self._copies.local(data)
        self.out = self._copies.local(out)

    def finish(self, written: Path) -> str | Path:
        """Copy a remote output to its place, and return where the output is; only the first rank does this.

        Raises:
            JobError: it cannot be written; the local copy stays.
        """
        return self._copies.upload(self._out, written)


def run_options(args: argparse.Namespace, *, most_per_worker: int | None = None) -> JobRunOptions:
    """What the flags say, and how many records each worker may work on.

    Raises:
        SettingsError: a value is out of range.
    """
    set_up = functools.partial(_set_up, debug=args.debug)
    return JobRunOptions(
        **given(args, JobRunOptions), rank=current_rank(), most_per_worker=most_per_worker, set_up=set_up
    )


def _set_up(rank: int, *, debug: bool) -> None:
    configure_logging(Rank(rank, rank + 1), debug=debug)
