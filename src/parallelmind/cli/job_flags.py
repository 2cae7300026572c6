"""The flags of every command that runs a job: worker processes, progress, metrics."""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

from parallelmind.cli.flags import documented_default
from parallelmind.cli.logs import configure_logging
from parallelmind.errors import SettingsError
from parallelmind.io.remote_files import LocalCopies, is_remote
from parallelmind.jobs.options import RunOptions, launchers
from parallelmind.jobs.ranks import Rank, current_rank


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """How the job runs; the output does not depend on these."""
    group = parser.add_argument_group("workers")

    def add(name: str, kind: type, default: object, metavar: str, text: str) -> None:
        shown = "none" if default is None else default
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=documented_default(text, shown))

    group.add_argument(
        "--launcher",
        choices=launchers(),
        default="local",
        help=documented_default("where the workers run: on this machine, or on a Ray cluster", "local"),
    )
    add(
        "--ray_address",
        str,
        None,
        "ADDRESS",
        "address of a running Ray cluster, such as auto; none starts one on this machine",
    )
    add(
        "--workers",
        int,
        1,
        "N",
        "worker processes on this machine; 0 works in this process; leave it out under torchrun",
    )
    add(
        "--gpus_per_worker",
        int,
        None,
        "N",
        "GPUs of each worker, shared if there are too few; none divides all of them evenly",
    )
    add("--total_gpus", int, None, "N", "use the first N of the visible GPUs, 0 the CPU; none uses all of them")
    add(
        "--record_timeout",
        float,
        600.0,
        "SECONDS",
        "replace a worker that makes no progress for so long, and try its records one by one; 0: never",
    )
    group.add_argument(
        "--work_dir",
        type=Path,
        default=Path(".parallelmind"),
        metavar="DIR",
        help=documented_default(
            "folder for copies of remote files (s3://, gs://, hf://) and the state of their job", ".parallelmind"
        ),
    )
    add("--prometheus_port", int, None, "PORT", "serve Prometheus metrics of the job on this port of 127.0.0.1")
    add("--log_interval", float, 10.0, "SECONDS", "seconds between progress lines when stderr is not a terminal")


class JobFiles:
    """Local stand-ins of the input and the output of a job, each of which may be a remote file.

    Raises:
        ParallelMindError: a remote file cannot be read.
    """

    def __init__(self, args: argparse.Namespace, data: str | Path, out: str | Path, rank: Rank) -> None:
        self._copies = LocalCopies(args.work_dir)
        self._out = out
        self.data = self._copies.input(data) if rank.rank == 0 else self._copies.local(data)
        self.out = self._copies.local(out)

    def finish(self, written: Path) -> str | Path:
        """Copy a remote output to its place, and return where the output is; only the first rank does this.

        Raises:
            JobError: it cannot be written; the local copy stays.
        """
        return self._copies.upload(self._out, written)


def file_or_url(text: str) -> str | Path:
    """A local path, or the address of a remote file as it is."""
    return text if is_remote(text) else Path(text)


def run_options(args: argparse.Namespace, *, most_per_worker: int | None = None) -> RunOptions:
    """The options that `add_job_flags` parsed, and how many records each worker may work on.

    Raises:
        SettingsError: a value is out of range.
    """
    if not 0 <= args.log_interval < math.inf:
        raise SettingsError(f"--log_interval is {args.log_interval}; it must be 0 or more seconds.")
    if args.ray_address is not None and args.launcher != "ray":
        raise SettingsError("--ray_address is for --launcher ray; give that, or leave it out.")
    return RunOptions(
        launcher=args.launcher,
        ray_address=args.ray_address,
        rank=current_rank(),
        workers=args.workers,
        gpus_per_worker=args.gpus_per_worker,
        most_per_worker=most_per_worker,
        total_gpus=args.total_gpus,
        record_timeout=args.record_timeout,
        prometheus_port=args.prometheus_port,
        set_up=functools.partial(_set_up, debug=args.debug),
    )


def _set_up(rank: int, *, debug: bool) -> None:
    configure_logging(Rank(rank, rank + 1), debug=debug)
