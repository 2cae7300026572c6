"""What a job does: the seam between the jobs and the pipelines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.gpus import GpuShare
from parallelmind.jobs.results import RecordResult

Write = Callable[[JsonLine, RecordResult], None]
"""Hands over what a record came to."""
GroupOf = Callable[[bytes], bytes]
"""The text that a line shares with others, such as its context; records that share it are worked on together."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Which worker this is."""

    rank: int = 0
    world_size: int = 1
    gpus: GpuShare | None = None
    """None: nothing was assigned."""


class RecordWorker(Protocol):
    """Works on records; made once per worker process."""

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        """Take every record and `write` one result for each, in any order, from the calling thread.

        Records are to be taken only as far ahead as there is work on them: what was taken, no other worker can take.
        """

    def close(self) -> None:
        """Free what it holds; nothing more will come."""


class Task(ABC):
    """A function of one record, its input and its output, and what makes it another job.

    It is sent to the workers, so it must be possible to pickle it.
    """

    kind: str
    """What is done with each record, such as "batch"."""
    input_path: Path
    """The records, JSONL, which may be compressed; `-` is the standard input."""
    source: Path | None = None
    """The file of the user that `input_path` was made from; None: it is the user's own."""
    out_path: Path
    """The output that is asked for, JSONL; compressed if its name ends in .gz or .zst."""
    max_records: int | None = None
    """Only the first so many records of the input; None: all."""
    group_of: GroupOf | None = None
    """What makes records neighbours; None: they are worked on in input order."""
    noun: str = "records"
    """What the log calls the records."""
    input_hint: str = ""
    """What makes such an input, said where it does not exist."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """JSON values as they take effect: everything that changes the output, and nothing else."""

    def defaults(self) -> Mapping[str, Any]:
        """The defaults of the settings, which hold for a job that was begun before there was such a setting."""
        return {}

    def files(self) -> Mapping[str, str]:
        """Hashes of the files that change the output, by the setting that names them."""
        return {}

    def moved(self, rows: bytes, line: int) -> bytes | None:
        """The rows of an answered record that now stands in this line of an edited input, and stood in another one.

        None: they hold for the former place only, and are made again.
        """
        del rows, line
        return None

    @abstractmethod
    def start(self, worker: WorkerInfo, alive: Callable[[], None]) -> RecordWorker:
        """Load what is needed. Called in the process of the worker, if there is work.

        `alive` is to be called at every sign of progress: a worker that shows none for the record timeout is replaced.
        """

    @abstractmethod
    def failure(self, line: JsonLine, reason: str, error_class: str) -> RecordResult:
        """The result of a record that no worker survived. Called without `start`."""
