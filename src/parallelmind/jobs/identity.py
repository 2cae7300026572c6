"""What makes two runs the same job: kind, settings, files and input; and what a finished job came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallelmind.errors import JobError
from parallelmind.io.line_table import InputSummary
from parallelmind.jobs.task import Task


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A job is resumed only by a run with the same one, on the same input or one that goes on behind it; otherwise
    answers made in two ways would end in one file."""

    kind: str
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What holds where a stored job has no such setting, as one of an earlier version may."""

    @classmethod
    def of(cls, task: Task) -> Identity:
        # As they come back from a file: tuples are lists, keys are texts.
        settings, files = (json.loads(json.dumps(dict(values))) for values in (task.settings(), task.files()))
        return cls(kind=task.kind, settings=settings, files=files, defaults=task.defaults())

    def differences(self, stored: Identity) -> list[str]:
        """What differs from the job as it was stored, in words."""
        found = []
        if self.kind != stored.kind:
            found.append(f"it was a {stored.kind!r} job and is now a {self.kind!r} job")
        for name in sorted({*self.settings, *stored.settings}):
            now = self.settings.get(name)
            before = stored.settings.get(name, self.defaults.get(name) if name in self.settings else None)
            if before != now:
                found.append(f"{name} was {_shown(before)}, is now {_shown(now)}")
        for name in sorted({*self.files, *stored.files}):
            if self.files.get(name) != stored.files.get(name):
                found.append(f"the files of {name} were edited")
        return found


@dataclass(frozen=True, kw_only=True)
class JobCompletion:
    """What a finished job came to."""

    answered: int
    failed: int
    retryable: int
    """Failed records that can be tried again."""
    rows: int
    failed_rows: int
    output_bytes: int
    failures: list[tuple[int, str]]
    """(line, reason) of the first failed records."""


def edited_files(before: Mapping[str, str], now: Mapping[str, str]) -> JobError:
    """What to tell the user of files that were edited while their job ran."""
    names = " and ".join(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))
    return JobError(
        f"the files of {names} were edited while the job ran, so it cannot go on with them; restore them and start the "
        "same command again, or start it as they are now: that is another job, with an output of its own."
    )


def other_input(before: InputSummary, now: InputSummary) -> str:
    """How the input of a job differs from what it was, in words."""
    return f"the input was {_described(before, now)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)


def _described(before: InputSummary, now: InputSummary) -> str:
    if (before.records, before.size) == (now.records, now.size):
        return f"another text of the same length ({now.records} records, {now.size} bytes)"
    return f"{before.records} records ({before.size} bytes), is now {now.records} records ({now.size} bytes)"
