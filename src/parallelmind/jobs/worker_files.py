"""The rows of each worker in a file of its own, beside the output that holds them all.

`answers.jsonl` has `answers_rank0.jsonl`, `answers_rank1.jsonl` and so on beside it when several workers answered. They
are derived from the finished output, so that they hold together exactly its rows. Rows that no worker made (each that
tried was lost) stand in the output alone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parallelmind.errors import JobError, SettingsError
from parallelmind.io.atomic import replacing
from parallelmind.io.compression import STDIN, packing_of, packing_writer
from parallelmind.io.numbered_names import split_name
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.results import BY_COORDINATOR, ResultIndex
from parallelmind.jobs.storage import job_folder

_STATE = "rank-files.json"
_CHUNK = 2**20


def worker_files(out_path: Path) -> dict[int, Path]:
    """The files that were made beside a finished output, by rank."""
    return {int(rank): out_path.with_name(_name(out_path, int(rank))) for rank in _state(out_path)["sizes"]}


def check_worker_files(out_path: Path, *, read: Path, world_size: int, overwrite: bool) -> None:
    """Refuse, before any work, to replace files that somebody else made, or the input `read`.

    Raises:
        JobError: names the file.
        SettingsError: likewise.
    """
    own = worker_files(out_path)
    for rank in {*own, *range(world_size if world_size > 1 else 0)}:
        path = out_path.with_name(_name(out_path, rank))
        if read != STDIN and path.exists() and read.exists() and path.samefile(read):
            raise SettingsError(f"the input {read} is where worker {rank} of {out_path} writes; choose another output.")
    for rank in range(world_size if world_size > 1 and not overwrite else 0):
        path = out_path.with_name(_name(out_path, rank))
        if rank not in own and path.exists():
            raise JobError(
                f"{path} exists and was not made by this job, whose worker {rank} writes there; choose another output, "
                "or replace it with --overwrite."
            )


def write_worker_files(job: OpenJob, *, world_size: int) -> None:
    """Make the files of an output that is complete, if several workers made it; remove those that hold no more.

    Raises:
        SettingsError: a file cannot be written.
    """
    out_path = job.shown_path
    before, state = worker_files(out_path), _state(out_path)
    if state["output"] == _stamp(out_path) and _sizes(before) == state["sizes"]:
        return
    index = job.finished_index()
    workers = index.records_by_worker()
    sizes: dict[str, int] = {}
    if world_size > 1 or len(workers) > 1:
        # Noted first: after a kill in between, the files are known to be ours, and are made again.
        named = {*before, *workers, *range(world_size)}
        _save_state(out_path, output=None, sizes=dict.fromkeys(map(str, sorted(named)), 0))
        sizes = _divide(job, index)
    elif not before:
        return
    for rank, path in before.items():
        if str(rank) not in sizes:
            path.unlink(missing_ok=True)
    _save_state(out_path, output=_stamp(out_path), sizes=sizes)


def _divide(job: OpenJob, index: ResultIndex) -> dict[str, int]:
    """Write the rows of each rank, in the order of the output; returns the bytes of each file."""
    out_path, packing = job.shown_path, packing_of(job.out_path)
    files: dict[int, BinaryIO] = {}
    ranks: dict[int, Path] = {}
    starts = np.concatenate(([0], np.flatnonzero(np.diff(index.worker)) + 1))[: len(index)]
    sizes = np.add.reduceat(index.size.astype(np.int64), starts) if len(index) else starts
    with contextlib.ExitStack() as stack:
        output, at = stack.enter_context(job.place.output.reader()), 0
        for worker, size in zip(index.worker[starts].tolist(), sizes.tolist(), strict=True):
            rank, end = worker - 1, at + size
            if worker == BY_COORDINATOR:
                at = end
                continue
            if rank not in files:
                path = out_path.with_name(_name(out_path, rank))
                temporary = stack.enter_context(replacing(path))
                file = stack.enter_context(temporary.open("wb"))
                files[rank] = stack.enter_context(packing_writer(file, packing)) if packing else file
                ranks[rank] = path
            while at < end:
                content = output.read(at, min(end - at, _CHUNK))
                files[rank].write(content)
                at += len(content)
    return {str(rank): path.stat().st_size for rank, path in ranks.items()}


def _name(out_path: Path, rank: int) -> str:
    stem, suffix = split_name(out_path)
    return f"{stem}_rank{rank}{suffix}"


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
