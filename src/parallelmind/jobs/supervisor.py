"""Starts worker processes, replaces those that die or hang, and ends them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from parallelmind.jobs.worker_process import GAVE_UP, Assignment, LifeSign, work
from parallelmind.jobs.worker_state import Death, WorkerState, record_death, states

_LOGGER = logging.getLogger(__name__)
_FAILED_STARTS = 3
"""Deaths in a row before the first lease, after which a worker is given up."""
_FRUITLESS_DEATHS = 20
"""Deaths in a row without a finished record in between, likewise."""
_STOP_SECONDS = 10.0


@dataclass
class _Watched:
    assignment: Assignment
    process: Any
    alive: LifeSign
    hung_for: float = 0.0
    failed_starts: int = 0
    fruitless_deaths: int = 0


class Supervisor:
    """Watches the workers of some ranks; call `poll` often.

    Args:
        assignments: one for each rank, with incarnation 0.
        record_timeout: seconds without progress after which a working process is replaced; 0: never.
        report: told in words what happens to the workers.
    """

    def __init__(
        self,
        assignments: list[Assignment],
        *,
        record_timeout: float,
        report: Callable[[str], None] = lambda message: _LOGGER.warning("%s", message),
    ) -> None:
        self._assignments = assignments
        self._record_timeout = record_timeout
        self._report = report
        self._context = multiprocessing.get_context("spawn")
        self._watched: dict[int, _Watched] = {}
        self.gave_up: dict[int, str] = {}
        """By rank, why a worker is not replaced any more."""

    def start(self) -> None:
        for assignment in self._assignments:
            self._watched[assignment.info.rank] = self._spawn(assignment)

    def poll(self) -> None:
        """Replace what ended, end what hangs. While the run goes on, no worker has reason to end."""
        for rank, watched in list(self._watched.items()):
            if watched.process.exitcode is None:
                self._end_if_hung(watched)
                continue
            del self._watched[rank]
            self._replace(watched)

    def stop(self) -> None:
        """End all workers: ask first, then make sure."""
        for watched in self._watched.values():
            watched.alive.dismiss()
            watched.process.terminate()
        self.wait(_STOP_SECONDS)
        for watched in self._watched.values():
            watched.process.kill()
        self.wait(_STOP_SECONDS)

    def wait(self, seconds: float) -> None:
        """Let the workers end by themselves, for so long at most."""
        until = time.monotonic() + seconds
        for watched in self._watched.values():
            watched.process.join(max(0.0, until - time.monotonic()))

    def _spawn(self, assignment: Assignment, before: _Watched | None = None) -> _Watched:
        shared = self._context.RawArray("d", 2)
        process = self._context.Process(
            target=work, args=(assignment, shared), daemon=True, name=f"worker {assignment.info.rank}"
        )
        with _environment(assignment.environment):
            process.start()
        watched = _Watched(assignment=assignment, process=process, alive=LifeSign(shared))
        if before:
            watched.failed_starts, watched.fruitless_deaths = before.failed_starts, before.fruitless_deaths
        return watched

    def _end_if_hung(self, watched: _Watched) -> None:
        silent = watched.alive.silent_for
        if self._record_timeout and silent > self._record_timeout and not watched.hung_for:
            watched.hung_for = silent
            watched.process.kill()

    def _replace(self, watched: _Watched) -> None:
        assignment = watched.assignment
        rank, incarnation = assignment.info.rank, assignment.incarnation
        state = self._state(rank, incarnation)
        death = self._death(watched)
        record_death(assignment.folder, rank, incarnation, death)
        watched.failed_starts = 0 if state and state.taken else watched.failed_starts + 1
        watched.fruitless_deaths = 0 if state and state.done else watched.fruitless_deaths + 1
        if watched.process.exitcode == GAVE_UP and state:
            self.gave_up[rank] = state.error
        elif watched.failed_starts >= _FAILED_STARTS:
            self.gave_up[rank] = f"worker {rank} {death.reason} {_FAILED_STARTS} times before it could begin"
        elif watched.fruitless_deaths >= _FRUITLESS_DEATHS:
            self.gave_up[rank] = f"worker {rank} {death.reason}; {_FRUITLESS_DEATHS} deaths without a finished record"
        if rank in self.gave_up:
            return
        self._report(f"worker {rank} {death.reason}; a new one takes its place")
        self._watched[rank] = self._spawn(replace(assignment, incarnation=incarnation + 1), watched)

    def _state(self, rank: int, incarnation: int) -> WorkerState | None:
        found = (state for _, state in states(self._assignments[0].folder))
        return next((state for state in found if (state.rank, state.incarnation) == (rank, incarnation)), None)

    def _death(self, watched: _Watched) -> Death:
        if watched.hung_for:
            reason = f"made no progress for {watched.hung_for:.0f} seconds (--record_timeout) and was ended"
            return Death(reason, "Timeout")
        code = watched.process.exitcode
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
            return Death(f"was killed by {name}{hint}", "WorkerDied")
        return Death(f"ended with exit code {code}", "WorkerDied")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the process that is started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
