"""Records that were being worked on when a worker died: they are run alone, and given up if that kills workers too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.board import Board, Lease
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.worker_state import Death, WorkerState, recorded_death, states

_DEATHS_ALONE = 2
_LOST_RUNS = 2


@dataclass
class _Suspicion:
    together: int = 0
    """Workers that died while they had this record and others."""
    alone: int = 0
    """Workers that died while they had this record only."""
    lost: int = 0
    """Runs that ended as a whole, by a power cut or kill, while a worker had this record."""
    reason: str = ""
    error_class: str = ""


class Suspects:
    """Kept in a file of the job's folder, since a run may die with its workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "suspects.json"
        self._of: dict[int, _Suspicion] = {}
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            self._of = {int(record): _Suspicion(**suspicion) for record, suspicion in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # none so far, or not readable any more: then all records are trusted again

    def collect(self, board: Board, index: ResultIndex, *, earlier_runs: bool = False) -> None:
        """Take up what dead workers left, and remove their state files.

        `earlier_runs`: no worker lives, and nobody may have seen how the last ones ended.
        """
        ended = []
        for path, state in states(self._folder):
            death = recorded_death(path)
            if death is not None or earlier_runs:
                self._note(board, index, state, death)
                ended.append(path)
        if not ended:
            return
        self._save()
        for path in ended:
            path.unlink(missing_ok=True)
            path.with_suffix(".death").unlink(missing_ok=True)

    def alone(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each record, whether it must run alone."""
        suspects = [
            record
            for record, suspicion in self._of.items()
            if suspicion.together or suspicion.alone or suspicion.lost >= _LOST_RUNS
        ]
        return np.isin(records, np.array(suspects, np.int64))

    def given_up(self, record: int) -> Death | None:
        """Why a record is not tried again; None if it is."""
        suspicion = self._of.get(record)
        if suspicion is None or suspicion.alone < _DEATHS_ALONE:
            return None
        reason = f"the worker {suspicion.reason} each time it ran this record, {suspicion.alone} times with no other"
        return Death(reason, suspicion.error_class)

    def forget(self) -> None:
        """The job is done."""
        self._of.clear()
        self._path.unlink(missing_ok=True)

    def _note(self, board: Board, index: ResultIndex, state: WorkerState, death: Death | None) -> None:
        for number, start, stop, alone in state.leases:
            try:
                listed = board.listed(Lease(round=number, start=start, stop=stop, alone=alone))
            except OSError:
                continue  # of a round whose list is gone: its records are found by their missing results
            for record in listed["record"].tolist():
                if record >= len(index) or not index.is_todo(record):
                    continue
                suspicion = self._of.setdefault(record, _Suspicion())
                if death is None:
                    suspicion.lost += 1
                elif alone:
                    suspicion.alone += 1
                else:
                    suspicion.together += 1
                if death is not None:
                    suspicion.reason, suspicion.error_class = death.reason, death.error_class

    def _save(self) -> None:
        stored = {str(record): asdict(suspicion) for record, suspicion in self._of.items()}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(stored), encoding="utf-8")
        temporary.replace(self._path)
