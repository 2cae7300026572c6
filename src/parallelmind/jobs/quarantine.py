"""Records that were being worked on when a worker died: they run alone, and are given up if that kills workers too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_DEATHS_ALONE = 2
_LOST_RUNS = 2


@dataclass(frozen=True)
class Death:
    """How a worker ended."""

    reason: str
    error_class: str = "WorkerDied"


@dataclass(frozen=True)
class Suspicion:
    """What is known against a record."""

    together: int = 0
    """Workers that died while they had this record and others."""
    alone: int = 0
    """Workers that died while they had this record only."""
    lost: int = 0
    """Runs that ended as a whole, by a power cut or kill, while a worker had this record."""
    reason: str = ""
    error_class: str = ""

    @property
    def runs_alone(self) -> bool:
        return bool(self.together or self.alone or self.lost >= _LOST_RUNS)

    @property
    def death(self) -> Death | None:
        """Why the record is not tried again; None if it is."""
        if self.alone < _DEATHS_ALONE:
            return None
        reason = f"the worker {self.reason} each time it ran this record, {self.alone} times with no other"
        return Death(reason, self.error_class)


class Quarantine:
    """The suspicions of a job."""

    def __init__(self, known: Mapping[int, Suspicion]) -> None:
        self._of = dict(known)

    def of(self, record: int) -> Suspicion:
        return self._of.get(record, Suspicion())

    def note_lost_run(self, records: Iterable[int]) -> list[int]:
        """A run ended as a whole while workers had these records; returns them."""
        return [self._note(record, replace(self.of(record), lost=self.of(record).lost + 1)) for record in records]

    def note_death(self, records: Iterable[int], death: Death, *, alone: bool) -> list[int]:
        """A worker died while it had these records; returns them."""
        noted = []
        for record in records:
            before = self.of(record)
            count = {"alone": before.alone + 1} if alone else {"together": before.together + 1}
            after = replace(before, reason=death.reason, error_class=death.error_class, **count)
            noted.append(self._note(record, after))
        return noted

    def suspects(self) -> list[int]:
        """The records that must run alone."""
        return [record for record, suspicion in self._of.items() if suspicion.runs_alone]

    def _note(self, record: int, suspicion: Suspicion) -> int:
        self._of[record] = suspicion
        return record
