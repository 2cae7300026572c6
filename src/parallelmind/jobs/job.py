"""A job turns an input JSONL into an output JSONL by a function of one record, and survives any interruption.

State lives in the folder `<output>.job` beside the output: the job file, the lock, the plan and the part files.
When a job is finished the parts are removed, unless records failed: those can still be tried again. The job file
stays, so that the same start again finds the job complete.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.data.jsonl import InputSummary, JsonLine, read_lines
from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.lock import lock_output
from parallelmind.jobs.merge import merge_parts
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.parts import Part, PartWriter, storage_error
from parallelmind.jobs.plan import GroupOf, Plan, PlanReader, make_plan
from parallelmind.jobs.spec import Completion, JobSpec, load_job_file, save_job_file

__all__ = ["HEAD_PART", "Job", "WorkItem", "job_folder"]

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
_ERROR_KEPT = 500
HEAD_PART = 0
"""The part of the process that leads a run; rank r writes part r + 1."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One record that has no result yet."""

    line: JsonLine


def job_folder(out_path: Path) -> Path:
    """The folder with the state of the job that writes `out_path`."""
    # The real path: two names of one output must meet at one lock.
    real = Path(os.path.realpath(out_path))
    return real.with_name(real.name + ".job")


class Job:
    """Opened as a context manager; then `pending` and `write` in this process, or workers that write parts of their
    own and are followed by `refresh`; then `finish`."""

    input: InputSummary
    """What the input holds; set when opened."""
    index: ResultIndex
    """What is known of each record."""
    completion: Completion | None
    """What the job came to, once it is finished; set when opened if an earlier run finished it."""
    resumed: int
    """Records that had a result when the job was opened and are not tried again."""

    def __init__(
        self,
        *,
        kind: str,
        input_path: Path,
        out_path: Path,
        settings: Mapping[str, Any],
        files: Mapping[str, str] | None = None,
        max_records: int | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
        group_of: GroupOf | None = None,
    ) -> None:
        self._kind = kind
        self.input_path = input_path
        self.out_path = Path(os.path.realpath(out_path))
        self._settings = settings
        self._files = files or {}
        self._max_records = max_records
        self._retry_failed = retry_failed
        self._overwrite = overwrite
        self._group_of = group_of
        self.folder = job_folder(out_path)
        self._job_file = self.folder / "job.json"
        self._parts: dict[int, Part] = {}
        self._writers: dict[int, PartWriter] = {}

    def __enter__(self) -> Job:
        try:
            self._check_paths()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        self._lock = lock_output(self.folder / "lock", self.out_path)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_writers()
        finally:
            self._lock.release()

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for input and settings."""
        return self._spec.digest

    @property
    def plan(self) -> Plan:
        return self._plan

    def todo(self) -> NDArray[np.int64]:
        """The records that have no result, in the order of work."""
        return self._plan.in_order(self.index.todo())

    def pending(self) -> Iterator[WorkItem]:
        """The records that have no result, in the order of work.

        Raises:
            JobError: the input was edited while the job ran.
        """
        todo = self.todo()
        reader = PlanReader(self.input_path, self._plan.offsets, self._plan.numbers)
        try:
            for start in range(0, len(todo), _BLOCK):
                for line in reader.read(todo[start : start + _BLOCK]):
                    yield WorkItem(line=line)
        except DataError:
            self.check_input()
            raise
        finally:
            reader.close()
        self.check_input()

    def check_input(self) -> None:
        """Raises:
        JobError: the input was edited since the job was opened.
        """
        if self._input_stamp() != self._stamp_when_opened:
            raise JobError(
                f"{self.input_path} was edited while the job ran; restore it, or begin anew with --overwrite."
            )

    def write(self, item: WorkItem, outcome: Outcome, *, part: int = HEAD_PART + 1) -> None:
        """Store what became of one record, in the part of rank 0 if not told otherwise.

        Raises:
            JobError: the disk is full or failing.
        """
        if part not in self._writers:
            self._writers[part] = PartWriter(self.part(part))
        self._writers[part].append(item.line.index, self.index.next_attempt(item.line.index), outcome)

    def part(self, number: int) -> Part:
        """One part of the job."""
        if number not in self._parts:
            self._parts[number] = Part(self.folder, number, self.digest)
        return self._parts[number]

    def refresh(self) -> int:
        """Note the results that were appended to the parts; returns how many."""
        new = 0
        for writer in self._writers.values():
            writer.flush()
        for path in sorted(self.folder.glob("part-*.index")):
            entries = self.part(_part_number(path)).read_new()
            if len(entries):
                self.index.add(entries)
                new += len(entries)
        return new

    def finish(self) -> Completion:
        """Put the output in place: the rows of all records, in input order.

        Raises:
            JobError: the disk is full or failing, or the input was edited while the job ran.
        """
        self._close_writers()
        self.refresh()
        if missing := self.input.records - self.index.done:
            raise JobError(f"{missing} records of {self.input_path} have no result; start the same command again.")
        self.check_input()
        rows_files = {number: part.rows_path for number, part in self._parts.items()}
        output_bytes = merge_parts(self.index, rows_files, self.folder / "output.tmp", self.out_path)
        failed = self.index.failed_records
        self.completion = Completion(
            answered=self.input.records - failed,
            failed=failed,
            retryable=self.index.retryable_records,
            rows=int(self.index.rows.sum(dtype=np.int64)),
            failed_rows=int(self.index.failed_rows.sum(dtype=np.int64)),
            output_bytes=output_bytes,
            failures=list(self._failures()),
        )
        self._save()
        if not failed:
            self._remove_parts()
        return self.completion

    def _check_paths(self) -> None:
        if not self.input_path.exists():
            raise DataError(f"the input {self.input_path} does not exist.")
        if not self.input_path.is_file():
            raise DataError(f"the input {self.input_path} is not a regular file; save the records to a file first.")
        if self.out_path.exists():
            if not self.out_path.is_file():
                raise SettingsError(f"the output {self.out_path} is not a regular file; choose a file name.")
            if self.out_path.samefile(self.input_path):
                raise SettingsError(f"the output {self.out_path} is the input itself; choose another file.")
            if not self._overwrite and not self._job_file.exists() and self.out_path.stat().st_size:
                raise JobError(
                    f"{self.out_path} exists and was not made by this job; choose another output, "
                    "or replace it with --overwrite."
                )
        next(read_lines(self.input_path, max_records=1), None)  # a file of another kind is refused before we write

    def _open(self) -> None:
        self._stamp_when_opened = self._input_stamp()
        self.input, self._plan = make_plan(self.input_path, max_records=self._max_records, group_of=self._group_of)
        self._spec = JobSpec(kind=self._kind, input=self.input, settings=self._settings, files=self._files)
        self.index = ResultIndex(self.input.records)
        self.completion = self._adopt_stored()
        (self.folder / "output.tmp").unlink(missing_ok=True)
        if self.completion and not (self._retry_failed and self.completion.retryable):
            self.resumed = self.input.records
            if not self.completion.failed:
                self._remove_parts()
            return
        self._read_parts()
        self.completion = None
        self._save()
        if self._retry_failed:
            self.index.reopen_failed()
        self.resumed = self.index.done - self.index.reopened

    def _adopt_stored(self) -> Completion | None:
        """Check the stored job against this one; return what it came to if it is complete."""
        stored = None if self._overwrite else load_job_file(self._job_file)
        if stored is None:
            self._remove_parts()
            return None
        spec, completion = stored
        if differences := self._spec.differences(spec):
            if completion is None and not any(path.stat().st_size for path in self.folder.glob("part-*.rows")):
                self._remove_parts()  # nothing was done yet: nothing to mix up
                return None
            raise JobError(
                f"{self.out_path} belongs to a job with another input or other settings: "
                f"{'; '.join(differences)}. Start with what it was begun with, choose another output, "
                "or begin anew with --overwrite."
            )
        self._spec = (
            spec  # equal settings may be spelled differently (1 and 1.0), and the parts carry the first spelling
        )
        if completion is None:
            return None
        if not self.out_path.exists():
            _LOGGER.warning("%s was complete but its output is gone: making it again", self.out_path)
            return None
        if self.out_path.stat().st_size != completion.output_bytes:
            raise JobError(
                f"{self.out_path} was edited after its job was complete; choose another output, "
                "or begin anew with --overwrite."
            )
        return completion

    def _read_parts(self) -> None:
        numbers = {_part_number(path) for path in self.folder.glob("part-*.*")}
        for number in sorted(numbers):
            part = self.part(number)
            if torn := part.check(self.input.records):
                _LOGGER.warning("dropped %d bytes of an unfinished write at the end of %s", torn, part.rows_path)
            self.index.add(part.read_new())

    def _save(self) -> None:
        try:
            save_job_file(self._job_file, self._spec, self.completion)
        except OSError as error:
            raise storage_error(self._job_file, error) from error

    def _remove_parts(self) -> None:
        self._close_writers()
        for pattern in ("part-*.index", "part-*.rows", "round-*.npy", "plan-*.npy"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        self._parts.clear()

    def _failures(self) -> Iterator[tuple[int, str]]:
        for place, _ in zip(self.index.failed_places(), range(_FAILURES_LISTED), strict=False):
            part = self.part(int(self.index.part[place]))
            with part.rows_path.open("rb") as file:
                file.seek(int(self.index.offset[place]))
                content = file.read(int(self.index.size[place]))
            errors = (json.loads(row).get("error") for row in content.splitlines())
            reason = next((str(error) for error in errors if error is not None), "")
            # For logs and terminals, which take no half of a surrogate pair.
            shown = reason[:_ERROR_KEPT].encode("utf-8", "replace").decode("utf-8")
            yield int(self._plan.numbers[place]), shown

    def _close_writers(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _input_stamp(self) -> tuple[int, int]:
        status = self.input_path.stat()
        return status.st_size, status.st_mtime_ns


def _part_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))
