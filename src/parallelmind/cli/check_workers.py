"""`parallelmind check-workers`: show and check how records and GPUs are divided over workers."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

from parallelmind.errors import SettingsError
from parallelmind.jobs.gpus import assign_gpus, count_gpus, visible_gpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_samples", type=int, default=103, help="records to divide (default: 103)")
    parser.add_argument("--num_workers", type=int, default=4, help="workers to divide them among (default: 4)")
    parser.add_argument("--total_gpus", type=int, metavar="N", help="GPUs to divide (default: those of this machine)")
    parser.add_argument("--skip_inference", action="store_true", help="check the division only, start no worker")


def run(args: argparse.Namespace) -> int:
    """0 if every record is given out exactly once, by slices, by leases and (unless skipped) by real workers."""
    for name, least in (("num_samples", 0), ("num_workers", 1)):
        if (value := getattr(args, name)) < least:
            raise SettingsError(f"--{name} is {value}; it must be {least} or more.")
    failures = _check_slices(args.num_samples, args.num_workers)
    failures += _check_leases(args.num_samples, args.num_workers)
    _show_gpus(args.num_workers, args.total_gpus)
    if not args.skip_inference:
        failures += _check_workers(args.num_samples, args.num_workers)
    print(f"{failures} checks failed" if failures else "all checks passed")
    return 1 if failures else 0


def _check_slices(records: int, workers: int) -> int:
    from parallelmind.jobs.leases import slice_bounds

    bounds = slice_bounds(records, workers)
    for worker, (start, stop) in enumerate(bounds):
        print(f"worker {worker}: records {start} to {stop}, {stop - start} of them")
    sizes = [stop - start for start, stop in bounds]
    covered = [record for start, stop in bounds for record in range(start, stop)]
    return _report("slices cover every record exactly once", covered == list(range(records))) + _report(
        "slices differ by one record at most", max(sizes) - min(sizes) <= 1
    )


def _check_leases(records: int, workers: int) -> int:
    import numpy as np

    from parallelmind.jobs.leases import Leases

    chance, given = random.Random(0), Counter[int]()
    leases = Leases(np.arange(records), workers=workers)
    # Workers of very different speed: who comes next is drawn, not taken in turn.
    while leases.left:
        lease = leases.take(min(chance.randrange(workers), chance.randrange(workers)), 5)
        if lease is not None:
            given.update(lease.records.tolist())
    return _report("leases give every record exactly once", given == Counter(range(records)))


def _show_gpus(workers: int, total: int | None) -> None:
    names = visible_gpus(os.environ, count_gpus()) if total is None else [str(number) for number in range(total)]
    for worker in range(workers):
        print(f"worker {worker}: {assign_gpus(worker, workers, names)}")


def _check_workers(records: int, workers: int) -> int:
    import json

    from parallelmind.jobs.options import RunOptions
    from parallelmind.jobs.run import run_job
    from parallelmind.tasks.copy_task import CopyTask

    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        data.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(records)), encoding="utf-8")
        run_job(CopyTask(data, out), RunOptions(workers=workers))
        return _report("workers wrote every record exactly once, in order", out.read_bytes() == data.read_bytes())


def _report(what: str, passed: bool) -> int:
    print(f"{'ok  ' if passed else 'FAIL'} {what}")
    return 0 if passed else 1
