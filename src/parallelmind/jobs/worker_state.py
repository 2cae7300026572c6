"""What the coordinator knows of one worker, and when it gives it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parallelmind.jobs.quarantine import Death

_FAILED_STARTS = 3
"""Deaths in a row before the first lease, after which a worker is given up."""
_FRUITLESS_DEATHS = 20
"""Deaths in a row without a finished record in between, likewise."""

_START_SECONDS = 60.0
"""A process that has just begun may be silent for so long."""

_BEAT_SECONDS = 5.0
"""Likewise one that is busy: it beats from a thread that gets its turn now and then."""

State = Literal["new", "loading", "idle", "working"]


@dataclass(slots=True)
class WorkerState:
    """What the coordinator knows of one worker."""

    state: State = "new"
    wanted: int = 1
    """Records it would take, while it is idle."""
    last_sign: float = 0.0
    """When it last made progress."""
    last_beat: float = 0.0
    """When its process was last known to run."""
    beats: bool = False
    """The present process was heard of."""
    hung: Death | None = None
    """It was ended for making no progress."""
    has_begun: bool = False
    """The present process took a lease."""
    has_finished: bool = False
    """The present process finished a record."""
    failed_starts: int = 0
    fruitless_deaths: int = 0
    given_up: str = ""
    """Why it is not replaced any more."""

    def bury(self, rank: int, death: Death, *, for_good: bool) -> None:
        """Its process is gone; another one begins where this one did, unless it is given up."""
        self.failed_starts = 0 if self.has_begun else self.failed_starts + 1
        self.fruitless_deaths = 0 if self.has_finished else self.fruitless_deaths + 1
        if not self.given_up:
            if for_good:
                self.given_up = f"worker {rank} {death.reason}"
            elif self.failed_starts >= _FAILED_STARTS:
                self.given_up = f"worker {rank} {death.reason} {_FAILED_STARTS} times before it could begin"
            elif self.fruitless_deaths >= _FRUITLESS_DEATHS:
                self.given_up = f"worker {rank} {death.reason}; {_FRUITLESS_DEATHS} deaths without a finished record"
        self.state, self.hung = "new", None
        self.beats = self.has_begun = self.has_finished = False

    def hears(self, at: float, *, progress: bool) -> None:
        """A message came, at this time; one that waited to be heard sets nothing back."""
        self.beats, self.last_beat = True, max(self.last_beat, at)
        if progress:
            self.last_sign = max(self.last_sign, at)

    def forgive(self, seconds: float) -> None:
        """For so long nobody listened: this silence is not its own."""
        self.last_sign += seconds
        self.last_beat += seconds

    def hang(self, now: float, timeout: float) -> str:
        """Why it is to be ended, if it is; `timeout` is in seconds."""
        if self.hung:
            return ""
        if self.state == "working" and now - self.last_sign > timeout:
            return f"made no progress for {now - self.last_sign:.0f} seconds (--record_timeout) and was ended"
        if self.state != "new" and now - self.last_beat > max(timeout, _BEAT_SECONDS if self.beats else _START_SECONDS):
            return f"stood still for {now - self.last_beat:.0f} seconds (--record_timeout) and was ended"
        return ""
