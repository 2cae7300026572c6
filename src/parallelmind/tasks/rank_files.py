"""The answers of each worker in a file of its own, beside the output that holds them all.

`answers.jsonl` has `answers_rank0.jsonl`, `answers_rank1.jsonl` and so on beside it when several workers answered. They
are derived from the finished output, by its `worker_rank`, so that they hold together exactly its rows. Rows that no
worker answered (each that tried was lost) have no rank and stand in the output alone.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from parallelmind.errors import JobError
from parallelmind.io.atomic import replacing
from parallelmind.jobs.job import job_folder
from parallelmind.jobs.run import JobReport

_STATE = "rank-files.json"


def rank_files(out_path: Path) -> dict[int, Path]:
    """The files that were made beside a finished output, by rank."""
    return {int(rank): out_path.with_name(_name(out_path, int(rank))) for rank in _state(out_path)["sizes"]}


def check_rank_files(out_path: Path, *, world_size: int, overwrite: bool) -> None:
    """Refuse, before any work, to replace files that somebody else made.

    Raises:
        JobError: names the file.
    """
    own = rank_files(out_path)
    for rank in range(world_size if world_size > 1 and not overwrite else 0):
        path = out_path.with_name(_name(out_path, rank))
        if rank not in own and path.exists():
            raise JobError(
                f"{path} exists and was not made by this job, whose worker {rank} writes there; choose another output, "
                "or replace it with --overwrite."
            )


def write_rank_files(out_path: Path, report: JobReport) -> None:
    """Make the files of an output that is complete, if several workers answered it; remove those that hold no more.

    Raises:
        SettingsError: a file cannot be written.
    """
    before, state = rank_files(out_path), _state(out_path)
    workers = report.statistics.workers
    # Without statistics of workers the job was complete before this run: files are made again only if some are lost.
    if report.world_size > 1 or len(workers) > 1 or (before and not workers):
        if state["output"] == _stamp(out_path) and _sizes(before) == state["sizes"]:
            return
        # Noted first: after a kill in between, the files are known to be ours, and are made again.
        named = {*before, *workers, *range(report.world_size)}
        _save_state(out_path, output=None, sizes=dict.fromkeys(map(str, sorted(named)), 0))
        sizes = _divide(out_path)
    elif workers and before:
        sizes = {}
    else:
        return
    for rank, path in before.items():
        if str(rank) not in sizes:
            path.unlink(missing_ok=True)
    _save_state(out_path, output=_stamp(out_path), sizes=sizes)


def _divide(out_path: Path) -> dict[str, int]:
    """Write the rows of each rank, in the order of the output; returns the bytes of each file."""
    files: dict[int, BinaryIO] = {}
    sizes: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for line in stack.enter_context(out_path.open("rb")):
            rank = json.loads(line)["worker_rank"]
            if rank is None:
                continue
            if rank not in files:
                temporary = stack.enter_context(replacing(out_path.with_name(_name(out_path, rank))))
                files[rank] = stack.enter_context(temporary.open("wb"))
            files[rank].write(line)
            sizes[str(rank)] += len(line)
    return dict(sizes)


def _name(out_path: Path, rank: int) -> str:
    return f"{out_path.stem}_rank{rank}{out_path.suffix}"


def _sizes(files: dict[int, Path]) -> dict[str, int]:
    return {str(rank): path.stat().st_size for rank, path in files.items() if path.exists()}


def _stamp(out_path: Path) -> list[int]:
    status = out_path.stat()
    return [status.st_size, status.st_mtime_ns]


def _state_file(out_path: Path) -> Path:
    return job_folder(out_path) / _STATE


def _save_state(out_path: Path, *, output: list[int] | None, sizes: dict[str, int]) -> None:
    with replacing(_state_file(out_path)) as temporary:
        temporary.write_text(json.dumps({"output": output, "sizes": sizes}) + "\n", encoding="utf-8")


def _state(out_path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_state_file(out_path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {"output": None, "sizes": {}}
