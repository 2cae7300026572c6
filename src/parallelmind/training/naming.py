"""The name under which a run continues or starts: one name for each set of effective settings.

One process at a time trains under a name, and holds its lock until it ends (`taken_run`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallelmind.errors import SettingsError, TrainingError
from parallelmind.io.locks import HeldLock
from parallelmind.io.numbered_names import numbered
from parallelmind.jobs.ranks import current_rank
from parallelmind.training.files import RunFiles, is_whole, unwritable
from parallelmind.training.options import TrainOptions
from parallelmind.training.resolving import model_family
from parallelmind.training.settings import differences

_LOGGER = logging.getLogger(__name__)
_SHOWN = 3
_CHOOSING_SECONDS = 60.0
"""Choosing takes milliseconds; whoever needs longer is stuck, as on a network disk that hangs."""
_LEAVING_SECONDS = 8.0
"""The process that reads ahead for a killed run holds its lock until it notices, within five seconds."""


@dataclass(frozen=True, kw_only=True)
class ChosenRun:
    """The files of a run, and the checkpoint from which it continues."""

    files: RunFiles
    checkpoint: Path | None = None
    """None: from the beginning."""
    note: str | None = None
    """Why the run has another name than the one asked for."""


def run_names(options: TrainOptions) -> Iterator[str]:
    """The names that a run may have, best first; `--task lora` puts its tag behind the number."""
    default = {"parallel_lora": "hf_parallel_lora", "pretrain": "pretrain"}
    if options.lora_name is not None:
        stem = options.lora_name
    elif options.task == "lora":
        stem = f"{model_family(options)}_parallel_lora"
    else:
        stem = default[options.task]
    tag = "_hf" if options.task == "lora" else ""
    return (f"{name}{tag}" for name in numbered(stem))


def choose_run(options: TrainOptions, settings: Mapping[str, Any]) -> ChosenRun:
    """The run to continue or to begin: the first name that is free, or whose run has these settings.

    Writes nothing, so that all processes of a run may ask.

    Raises:
        SettingsError: the checkpoint to go on from is not one, or is given with `--overwrite`.
    """
    names = run_names(options)
    wanted = RunFiles(options.out_dir, next(names))
    if options.resume_from_checkpoint is not None:
        return _resumed(options, wanted, names)
    if options.overwrite:
        return ChosenRun(files=wanted)
    files, first_reason = wanted, _other_run(wanted, settings)
    reason = first_reason
    while reason is not None:
        files = RunFiles(options.out_dir, next(names))
        reason = _other_run(files, settings)
    note = None
    if first_reason is not None:
        ends = files.model if options.task == "pretrain" else files.adapter(None)
        if options.use_dora:  # no W + B·A, so no .pth
            ends = ends.with_suffix("")
        note = (
            f"{wanted.name} is a run with other settings ({first_reason}), which stays as it is: this one is called "
            f"{files.name} and ends in {ends}. --overwrite would begin {wanted.name} anew instead"
        )
    return ChosenRun(files=files, checkpoint=files.last_checkpoint(), note=note)


def agreed(run: ChosenRun, processes: int) -> ChosenRun:
    """The choice of the first process, for all of them; to be called once they are connected."""
    if processes == 1:
        return run
    chosen: list[Any] = [run]
    dist.broadcast_object_list(chosen, src=0)
    first: ChosenRun = chosen[0]
    return first


def _resumed(options: TrainOptions, wanted: RunFiles, names: Iterator[str]) -> ChosenRun:
    given = options.resume_from_checkpoint
    assert given is not None
    if options.overwrite:
        raise SettingsError("--overwrite and --resume_from_checkpoint exclude each other; give one.")
    if not is_whole(given):
        raise SettingsError(
            f"--resume_from_checkpoint {given}: not a folder with a whole checkpoint; give one such as checkpoint-500."
        )
    files = wanted
    while files.former_settings() is not None:
        if files.checkpoints.resolve() == given.resolve().parent:
            return ChosenRun(files=files, checkpoint=given)
        files = RunFiles(options.out_dir, next(names))
    return ChosenRun(files=wanted, checkpoint=given)


def _other_run(files: RunFiles, settings: Mapping[str, Any]) -> str | None:
    """How the run of this name differs from these settings; None if it does not, or there is none."""
    former = files.former_settings()
    if former is None:
        return None
    if not former:
        return "they are not known, as its run.json is not there or not readable"
    found = differences(settings, former)
    if len(found) > _SHOWN:
        found[_SHOWN:] = [f"and {len(found) - _SHOWN} more"]
    return ", ".join(found) or None


@contextmanager
def taken_run(
    options: TrainOptions, settings: Mapping[str, Any], *, patience: float = _LEAVING_SECONDS
) -> Iterator[ChosenRun]:
    """The run to continue or to begin, whose name no other run can take during the block.

    The lock is of the first process of a run; the others get what they would choose, and ask it (`agreed`). The
    system frees it when the process ends, however it ends. A new run that fails and leaves nothing frees its name.

    Args:
        patience: seconds to wait for a run of that name, which may be about to end.
    Raises:
        SettingsError: as `choose_run`.
        TrainingError: another process trains this run, or its folder cannot be written.
    """
    if current_rank().rank != 0:
        yield choose_run(options, settings)
        return
    with ExitStack() as held:
        out = options.out_dir
        stuck = f"another run has been taking a name in {out} for a minute; end it, or give another --out_dir."
        # Whoever chooses sees the settings of all runs that are going on: each wrote them before the next one chose.
        with _locked(out / "checkpoints" / ".choosing.lock", _CHOOSING_SECONDS, stuck):
            run = _take(options, settings, held, patience)
            new = run.files.former_settings() is None
            if new:
                run.files.write_settings(dict(settings))
        try:
            yield run
        except BaseException:
            if new:
                run.files.forget_if_empty()
            raise


def _take(options: TrainOptions, settings: Mapping[str, Any], held: ExitStack, patience: float) -> ChosenRun:
    """Choose, and let `held` hold the lock of what was chosen."""
    while True:
        run = choose_run(options, settings)
        checkpoints = run.files.checkpoints
        busy = f"another run is writing {checkpoints}; wait until it ends, or choose another --lora_name."
        with ExitStack() as lock:
            lock.enter_context(_locked(checkpoints.with_name(f".{run.files.name}.lock"), patience, busy))
            now = choose_run(options, settings)  # the run that had the lock may have gone on until it ended
            if now.files == run.files:
                held.push(lock.pop_all())
                return now


def _locked(path: Path, seconds: float, busy: str) -> HeldLock:
    """A lock that is held, for which to wait so long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return HeldLock(path, busy=TrainingError(busy), seconds=seconds)
    except OSError as error:
        raise unwritable(path, error) from error
