"""The board of a run: which records are left to take, seen by all workers.

Work comes in rounds. A round is a list of records; each worker begins with its own slice of it, takes small leases
from the front, and when its slice is used up helps others (see `sharing`), so that a slow worker holds nobody up. What
a worker that died had taken is found at the end of the round, and is the next round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.io.locked_file import LockedFile
from parallelmind.jobs.sharing import Share, slice_bounds, whose_next

BOARD_NAME = "board.json"

_GROUP_SEARCH = 256
_LISTED = np.dtype([("record", "<i8"), ("attempt", "<u2")])


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
    """A locked file and the lists of the rounds, in the folder of the job.

    Args:
        clock: seconds, the same for all processes of the run.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._file = LockedFile(folder / BOARD_NAME)
        self._lists: dict[int, NDArray[Any]] = {}
        self._groups: dict[int, NDArray[np.int64] | None] = {}

    def begin(self, run: str, digest: bytes, records: int, *, state: str = "working", keep_apart: bool = False) -> None:
        """Clear the board for a new run; workers of other runs see that they are not meant.

        `state` is "complete" for a run that has nothing to give out; `keep_apart`: see `sharing`.
        """
        job = {"digest": digest.hex(), "records": records, "keep_apart": keep_apart, "given_up": []}
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
            content["taken_at"], content["begun"] = [None] * workers, self._clock()
            content["alone"] = [together, len(records)]

    def give_up(self, workers: Iterable[int]) -> None:
        """What these workers had to do is for the others."""
        with self._file.change() as content:
            content["given_up"] = sorted({*content["given_up"], *workers})

    def close(self, state: str, message: str = "") -> None:
        """End the run: "complete" or "failed"."""
        with self._file.change() as content:
            content["state"], content["message"] = state, message

    def read(self) -> View:
        return _view(self._file.read())

    def has_for(self, worker: int) -> bool:
        """Whether this worker could take something now."""
        content = self._file.read()
        return self._whose(content, worker) is not None or _alone_left(content) > 0

    def take(self, run: str, worker: int, wanted: int) -> Lease | None:
        """Take up to `wanted` places, None if there is none for this worker at present.

        Near the end less is given than asked for, so that the workers end together.
        """
        with self._file.change() as content:
            view = _view(content)
            if view.run != run or view.state != "working" or not view.left:
                return None
            if (number := self._whose(content, worker)) is not None:
                slices: list[list[int]] = content["slices"]
                fair = max(1, view.left // (2 * len(slices)))
                start, limit = slices[number]
                stop = self._to_group_end(view.round, start, min(start + min(wanted, fair), limit), limit)
                slices[number][0] = stop
                now = self._clock()
                if all(at is None for at in content["taken_at"]):
                    content["begun"] = now
                content["taken_at"][worker % len(slices)] = now
                return Lease(round=view.round, start=start, stop=stop, alone=False)
            if not _alone_left(content):
                return None
            start = content["alone"][0]
            content["alone"][0] = start + 1
            return Lease(round=view.round, start=start, stop=start + 1, alone=True)

    def _whose(self, content: dict[str, Any], worker: int) -> int | None:
        slices = content.get("slices")
        if not slices:
            return None
        given_up = content["given_up"]
        shares = [
            Share(stop - start, taken_at, number in given_up)
            for number, ((start, stop), taken_at) in enumerate(zip(slices, content["taken_at"], strict=True))
        ]
        return whose_next(
            shares,
            worker % len(slices),
            now=self._clock(),
            begun=content["begun"],
            keep_apart=content["keep_apart"],
        )

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


def _alone_left(content: dict[str, Any]) -> int:
    start, stop = content.get("alone", [0, 0])
    return int(stop - start)


def _view(content: dict[str, Any]) -> View:
    left = sum(stop - start for start, stop in content.get("slices", [])) + _alone_left(content)
    return View(
        run=content.get("run", ""),
        state=content.get("state", ""),
        message=content.get("message", ""),
        round=content.get("round", 0),
        left=left,
        digest=bytes.fromhex(content.get("digest", "")),
        records=content.get("records", 0),
    )
