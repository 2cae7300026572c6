"""Take the name of a run: one process at a time trains under it, and holds its lock until it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parallelmind.errors import TrainingError
from parallelmind.io.locks import HeldLock
from parallelmind.jobs.ranks import current_rank
from parallelmind.training.files import unwritable
from parallelmind.training.naming import ChosenRun, choose_run
from parallelmind.training.options import TrainOptions

_CHOOSING_SECONDS = 60.0
"""Choosing takes milliseconds; whoever needs longer is stuck, as on a network disk that hangs."""
_LEAVING_SECONDS = 8.0
"""The process that reads ahead for a killed run holds its lock until it notices, within five seconds."""


@contextmanager
def taken_run(options: TrainOptions, settings: Mapping[str, Any]) -> Iterator[ChosenRun]:
    """The run to continue or to begin, whose name no other run can take during the block.

    The lock is of the first process of a run; the others get what they would choose, and ask it (`agreed`). The
    system frees it when the process ends, however it ends. A new run that fails and leaves nothing frees its name.

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
            run = _take(options, settings, held)
            new = run.files.former_settings() is None
            if new:
                run.files.write_settings(dict(settings))
        try:
            yield run
        except BaseException:
            if new:
                run.files.forget_if_empty()
            raise


def _take(options: TrainOptions, settings: Mapping[str, Any], held: ExitStack) -> ChosenRun:
    """Choose, and let `held` hold the lock of what was chosen."""
    while True:
        run = choose_run(options, settings)
        checkpoints = run.files.checkpoints
        busy = f"another run is writing {checkpoints}; wait until it ends, or choose another --lora_name."
        with ExitStack() as lock:
            lock.enter_context(_locked(checkpoints.with_name(f".{run.files.name}.lock"), _LEAVING_SECONDS, busy))
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
