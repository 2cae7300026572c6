"""What each worker process is doing, as its own small file in the folder of the job; it outlives the process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from parallelmind.io.locked_file import LockedFile, ProcessLock

Phase = Literal["loading", "idle", "working"]


@dataclass(kw_only=True)
class WorkerState:
    """One worker process. A worker is "working" before it takes its first lease and until all of them are done."""

    run: str
    rank: int
    incarnation: int
    """0 for the first process of this rank in a run, 1 for the one that replaced it, …"""
    phase: Phase = "loading"
    leases: list[tuple[int, int, int, bool]] = field(default_factory=list)
    """(round, start, stop, alone) of leases that may hold unfinished records."""
    taken: int = 0
    """Leases taken so far."""
    done: int = 0
    """Records finished so far."""
    error: str = ""
    """Why the process gave up."""


@dataclass(frozen=True)
class Death:
    """How a worker process ended, as the process that watched it saw it."""

    reason: str
    error_class: str


class StateFile:
    """The file of one worker process."""

    def __init__(self, folder: Path, state: WorkerState) -> None:
        self._path = _state_path(folder, state.rank, state.incarnation)
        self._path.unlink(missing_ok=True)
        # Of a process of an earlier run that died before it had a state file; it would be taken for our own death.
        _death_path(self._path).unlink(missing_ok=True)
        self._file = LockedFile(self._path)
        self.state = state
        self.save()

    def save(self) -> None:
        self._file.write(asdict(self.state))

    def remove(self) -> None:
        """The worker ended as it should: nothing of it is left to do."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def states(folder: Path) -> Iterator[tuple[Path, WorkerState]]:
    """All state files, dead and living, in the order of rank and incarnation."""
    for path in sorted(folder.glob("worker-*-*.json")):
        try:
            file = LockedFile(path)
        except OSError:
            continue  # it was removed
        try:
            content = file.read()
        except ValueError:
            continue  # its process died before the first write
        finally:
            file.close()
        if content:
            leases = [(round_, start, stop, alone) for round_, start, stop, alone in content.pop("leases")]
            yield path, WorkerState(leases=leases, **content)


def is_any_working(folder: Path) -> bool:
    """Whether a worker may hold leases: one that lives and works, or one whose end nobody has recorded yet."""
    latest = {state.rank: (path, state) for path, state in states(folder)}
    for rank, (path, state) in latest.items():
        if recorded_death(path) is None and (state.phase == "working" or not worker_lock(folder, rank).is_held()):
            return True
    return False


def worker_lock(folder: Path, rank: int) -> ProcessLock:
    """Held by the worker process of a rank while it lives."""
    return ProcessLock(folder / f"worker-{rank:05d}.lock")


def record_death(folder: Path, rank: int, incarnation: int, death: Death) -> None:
    path = _death_path(_state_path(folder, rank, incarnation))
    path.write_text(json.dumps(asdict(death)), encoding="utf-8")


def recorded_death(state_path: Path) -> Death | None:
    """How the process of a state file ended; None if nobody saw it end."""
    try:
        return Death(**json.loads(_death_path(state_path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _death_path(state_path: Path) -> Path:
    return state_path.with_suffix(".death")


def _state_path(folder: Path, rank: int, incarnation: int) -> Path:
    return folder / f"worker-{rank:05d}-{incarnation:05d}.json"
