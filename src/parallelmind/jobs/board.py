"""The board of a run: which records are left to take, seen by all workers.

Work comes in rounds. A round is a list of records; each worker begins with its own slice of it, takes small leases
from the front, and when its slice is used up takes from the slice that has most left, so that a slow worker holds
nobody up. What a worker that died had taken is found at the end of the round, and is the next round.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.jobs.locked_file import LockedFile

__all__ = ["Board", "Lease", "View", "slice_bounds"]

_GROUP_SEARCH = 256
_LISTED = np.dtype([("record", "<i8"), ("attempt", "<u2")])


def slice_bounds(total: int, workers: int) -> list[tuple[int, int]]:
    """(start, stop) for each worker: every number below `total` once, sizes that differ by one at most."""
    size, larger = divmod(total, workers)
    starts = [worker * size + min(worker, larger) for worker in range(workers + 1)]
    return list(itertools.pairwise(starts))


@dataclass(frozen=True, slots=True)
class Lease:
    """Places `start` to `stop` of the round's list, for one worker."""

    round: int
    start: int
    stop: int
    alone: bool
    """The record is to be run with nothing else, since a worker died with it."""


@dataclass(frozen=True, slots=True)
class View:
    """The board as it was read."""

    run: str
    state: str
    """"" (not begun), "working", "complete" or "failed"."""
    message: str
    round: int
    left: int
    """Places of the round that nobody has taken."""
    digest: bytes
    """Of the job."""
    records: int


class Board:
    """A locked file and the lists of the rounds, in the folder of the job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = LockedFile(folder / "board.json")
        self._lists: dict[int, NDArray[Any]] = {}
        self._groups: dict[int, NDArray[np.int64] | None] = {}

    def begin(self, run: str, digest: bytes, records: int, *, state: str = "working") -> None:
        """Clear the board for a new run; workers of other runs see that they are not meant.

        `state` is "complete" for a run that has nothing to give out.
        """
        job = {"digest": digest.hex(), "records": records}
        self._file.write({"run": run, "state": state, "round": 0, "slices": [], "alone": [0, 0], **job})

    def open_round(
        self,
        number: int,
        records: NDArray[np.int64],
        attempts: NDArray[Any],
        *,
        workers: int,
        alone: int = 0,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        """Give out these records; the last `alone` of them are to run alone.

        `attempts` says which attempt on each record this is; `groups`, if given, keeps equal neighbours in one lease
        where that is possible.
        """
        listed = np.empty(len(records), _LISTED)
        listed["record"], listed["attempt"] = records, attempts
        np.save(self._folder / f"round-{number}.npy", listed)
        path = self._folder / f"round-{number}-groups.npy"
        path.unlink(missing_ok=True)
        if groups is not None:
            np.save(path, groups)
        together = len(records) - alone
        with self._file.change() as content:
            content["round"] = number
            content["slices"] = [list(bounds) for bounds in slice_bounds(together, workers)]
            content["alone"] = [together, len(records)]

    def close(self, state: str, message: str = "") -> None:
        """End the run: "complete" or "failed"."""
        with self._file.change() as content:
            content["state"], content["message"] = state, message

    def read(self) -> View:
        return _view(self._file.read())

    def take(self, run: str, worker: int, wanted: int) -> Lease | None:
        """Take up to `wanted` places, None if none is left.

        Near the end less is given than asked for, so that the workers end together.
        """
        with self._file.change() as content:
            view = _view(content)
            if view.run != run or view.state != "working" or not view.left:
                return None
            slices: list[list[int]] = content["slices"]
            own = slices[worker % len(slices)] if slices else [0, 0]
            chosen = own if own[0] < own[1] else max(slices, key=lambda bounds: bounds[1] - bounds[0], default=[0, 0])
            if chosen[0] < chosen[1]:
                fair = max(1, view.left // (2 * len(slices)))
                start, limit = chosen
                stop = self._to_group_end(view.round, start, min(start + min(wanted, fair), limit), limit)
                chosen[0] = stop
                return Lease(round=view.round, start=start, stop=stop, alone=False)
            start = content["alone"][0]
            content["alone"][0] = start + 1
            return Lease(round=view.round, start=start, stop=start + 1, alone=True)

    def listed(self, lease: Lease) -> NDArray[Any]:
        """The `record`s of a lease and the number of the `attempt` on each, in the order of work."""
        if lease.round not in self._lists:
            self._lists = {lease.round: np.load(self._folder / f"round-{lease.round}.npy", mmap_mode="r")}
        return np.array(self._lists[lease.round][lease.start : lease.stop])

    def _to_group_end(self, number: int, start: int, stop: int, limit: int) -> int:
        if number not in self._groups:
            path = self._folder / f"round-{number}-groups.npy"
            self._groups = {number: np.load(path, mmap_mode="r") if path.exists() else None}
        groups = self._groups[number]
        if groups is None or stop >= limit:
            return stop
        ahead = groups[stop : min(stop + _GROUP_SEARCH, limit)] != groups[stop - 1]
        return stop + (int(np.argmax(ahead)) if ahead.any() else len(ahead))


def _view(content: dict[str, Any]) -> View:
    left = sum(stop - start for start, stop in [*content.get("slices", []), content.get("alone", [0, 0])])
    return View(
        run=content.get("run", ""),
        state=content.get("state", ""),
        message=content.get("message", ""),
        round=content.get("round", 0),
        left=left,
        digest=bytes.fromhex(content.get("digest", "")),
        records=content.get("records", 0),
    )
