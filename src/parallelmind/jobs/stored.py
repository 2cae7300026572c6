"""What the ledger of a job holds: the job, its outputs, its results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallelmind.io.line_table import InputSummary
from parallelmind.jobs.identity import Identity, JobCompletion

JOB_COLUMNS = ("kind", "source", "settings", "files", "input", "output", "next_output", "completion")
"""Of the one row that is the job."""


def valid_text(text: str) -> str:
    """The text, or where it has bytes of a file name that are not UTF-8, with escapes for them that JSON reads too."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished output."""

    digest: str
    size: int
    records: int
    through: int
    """The results up to this id stand in it."""

    def emptied(self) -> Output:
        """The same file, which the job may replace, and in which no result stands."""
        return dataclasses.replace(self, records=0, through=0)


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """The job as the ledger has it."""

    identity: Identity
    input: InputSummary
    source: str = ""
    """Where the input was read from."""
    output: Output | None = None
    """That its last completion left."""
    next_output: Output | None = None
    """That is about to take its place, or has taken it a moment ago."""
    completion: JobCompletion | None = None

    def as_texts(self) -> list[str | None]:
        """What stands in JOB_COLUMNS."""

        def text(value: Any) -> str | None:
            return None if value is None else valid_text(json.dumps(value, ensure_ascii=False))

        plain = dataclasses.asdict(self)
        identity = plain["identity"]
        values = (plain[name] for name in JOB_COLUMNS[4:])
        return [
            identity["kind"],
            valid_text(self.source),
            text(identity["settings"]),
            text(identity["files"]),
            *map(text, values),
        ]

    @classmethod
    def of_texts(cls, kind: str, source: str, *texts: str | None) -> StoredJob:
        """The job of a row.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: something else stands there.
        """
        values: list[Any] = [None if text is None else json.loads(text) for text in texts]
        settings, files, input_, output, next_output, completion = values
        if not isinstance(settings, dict) or not isinstance(files, dict):
            raise TypeError("no settings or no files")
        if completion is not None:
            completion["failures"] = [(line, reason) for line, reason in completion["failures"]]
        return cls(
            identity=Identity(kind=kind, settings=settings, files=files),
            input=InputSummary(**input_),
            source=source,
            output=output and Output(**output),
            next_output=next_output and Output(**next_output),
            completion=completion and JobCompletion(**completion),
        )

    def on_input(self, summary: InputSummary, output: Output | None) -> StoredJob:
        """The same job, to be completed on this input."""
        return dataclasses.replace(self, input=summary, output=output, next_output=None, completion=None)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results that came together, of one worker."""

    records: NDArray[np.int64]
    """Below 0: the input does not have it any more."""
    lines: NDArray[Any]
    """The number of each one's line."""
    keys: NDArray[Any]
    """What each is bound to, see `LineTable.keys`."""
    worker: int
    """Rank + 1, or BY_COORDINATOR."""
    attempts: NDArray[Any]
    sizes: Sequence[int]
    measures: Sequence[Sequence[Any]]
    """For each of MEASURES its values."""
    payload: bytes
    """The rows of all of them, one after the other."""


class StoredResult(NamedTuple):
    """The newest result of a record, which the input may have had once."""

    key: bytes
    line: int
    attempt: int
    worker: int | None
    block: int | None
    """None: the rows are in the finished output."""
    offset: int
    size: int
    measures: tuple[Any, ...]
