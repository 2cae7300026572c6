"""What a job is: its input and its settings, as stored in the job file.

A job is resumed only by a start with the same settings, on the same input or one that goes on behind it; otherwise
answers made in two ways would end in one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallelmind.errors import JobError
from parallelmind.io.jsonl import begins_with
from parallelmind.io.line_table import InputSummary

_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """The identity of a job."""

    kind: str
    """What is done with each record, such as "batch"."""
    input: InputSummary
    settings: Mapping[str, Any]
    """JSON values; everything that changes the output, and nothing else."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the files that change the output, by the setting that names them."""

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for kind, settings and files; every part begins with them.

        Not for the input, so that the parts stay good when it grows.
        """
        identity = [self.kind, dict(self.settings), dict(self.files)]
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()

    def differences(self, stored: JobSpec) -> list[str]:
        """What differs from the job as it was stored but for the input, in words."""
        found = []
        if self.kind != stored.kind:
            found.append(f"it was a {stored.kind!r} job and is now a {self.kind!r} job")
        for name in sorted({*self.settings, *stored.settings}):
            before, now = (spec.settings.get(name) for spec in (stored, self))
            if before != now:
                found.append(f"{name} was {_shown(before)}, is now {_shown(now)}")
        for name in sorted({*self.files, *stored.files}):
            if self.files.get(name) != stored.files.get(name):
                found.append(f"the files of {name} were edited")
        return found

    def extends(self, stored: JobSpec, input_path: Path) -> bool:
        """Whether the input is the stored one, or begins with all of its records, byte for byte.

        Raises:
            DataError: the input cannot be read.
        """
        return self.input == stored.input or (
            self.input.records >= stored.input.records and begins_with(input_path, stored.input)
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
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


def save_job_file(path: Path, spec: JobSpec, completion: Completion | None) -> None:
    """Write the job file so that it is whole at any moment."""
    content = {
        "format": _FORMAT,
        "kind": spec.kind,
        "input": dataclasses.asdict(spec.input),
        "settings": dict(spec.settings),
        "files": dict(spec.files),
        "completion": completion and dataclasses.asdict(completion),
    }
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_job_file(path: Path) -> tuple[JobSpec, Completion | None] | None:
    """The stored job and, if it is finished, what it came to; None if there is no job file.

    Raises:
        JobError: the file is damaged, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise JobError(
                f"{path} has format {content['format']!r}, this version reads {_FORMAT}; "
                "finish the job with the version that began it, or begin anew with --overwrite."
            )
        spec = JobSpec(
            kind=content["kind"],
            input=InputSummary(**content["input"]),
            settings=content["settings"],
            files=content["files"],
        )
        completion = content["completion"]
        if completion is None:
            return spec, None
        failures = [(line, reason) for line, reason in completion.pop("failures")]
        return spec, Completion(**completion, failures=failures)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"the job file {path} is damaged ({error!r}); begin anew with --overwrite.") from error


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)


def other_input(before: InputSummary, now: InputSummary) -> str:
    """How the input of a job differs from what it was, in words."""
    return f"the input was {_described(before, now)}"


def _described(before: InputSummary, now: InputSummary) -> str:
    if (before.records, before.size) == (now.records, now.size):
        return f"another text of the same length ({now.records} records, {now.size} bytes)"
    return f"{before.records} records ({before.size} bytes), is now {now.records} records ({now.size} bytes)"
