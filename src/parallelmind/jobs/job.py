"""A job turns an input JSONL into an output JSONL by a function of one record, and survives any interruption.

State lives in the folder `<output>.job` beside the output: the job file, the lock, the plan and the part files.
When a job is finished the parts are removed. The job file stays, so that the same start again finds the job complete,
and so does an index of the output, so that failed records can be tried again and a longer input goes on from it.

A job whose settings differ from those of the job that stands under its output's name takes the next name that is free
(`out.jsonl`, `out_2.jsonl`, …) or has equal settings: no command destroys or mixes what another one made.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.io.jsonl import JsonLine, read_lines
from parallelmind.io.line_table import InputSummary
from parallelmind.io.numbered_names import numbered_paths, spelled_beside
from parallelmind.io.output_lock import lock_output
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.parts import Part, PartWriter, storage_error
from parallelmind.jobs.plan import GroupOf, Plan, PlanReader, make_plan
from parallelmind.jobs.spec import Completion, JobSpec, load_job_file, other_input, save_job_file
from parallelmind.jobs.standing_output import StandingOutput, edited

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
HEAD_PART = 0
"""The part of the process that leads a run; rank r writes part r + 1."""
_BLOCK = 4096
_DIFFERENCES_TOLD = 3
_PATIENCE_SECONDS = 5.0
"""For the job file of a run that has just taken the lock."""


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
        keep_larger: bool = False,
        input_from: str = "",
    ) -> None:
        """Args:
        input_from: what makes an input, said where it does not exist.
        keep_larger: where a job on more records of the input stands already, `max_records` is enough with it.
        """
        self._kind = kind
        self.input_path = input_path
        self._asked_path = out_path
        self._settings = settings
        self._files = files or {}
        self._max_records = max_records
        self._retry_failed = retry_failed
        self._overwrite = overwrite
        self._group_of = group_of
        self._keep_larger = keep_larger
        self._input_from = input_from
        self._parts: dict[int, Part] = {}
        self._writers: dict[int, PartWriter] = {}
        self.move_to(next(self.names()))

    def names(self) -> Iterator[Path]:
        """The outputs that the job may take, in this order."""
        return numbered_paths(self._asked_path)

    def move_to(self, out_path: Path) -> None:
        """Write this one of the `names`."""
        self.out_path = out_path
        self.folder = job_folder(out_path)
        self._job_file = self.folder / "job.json"
        self._output = StandingOutput(self.folder, out_path)
        self._parts.clear()

    @property
    def shown_path(self) -> Path:
        """The output as the user would spell it."""
        return spelled_beside(self._asked_path, self.out_path)

    def __enter__(self) -> Job:
        self._check_input()
        self._stamp_when_opened = self._input_stamp()
        self.input, self._plan = self._read_plan(self._max_records)
        first, differences = True, list[str]()
        for out_path in self.names():
            self.move_to(out_path)
            if not first and self._is_foreign():
                continue
            if not (found := self._try_to_open()):
                break
            differences = differences or found
            first = False
        if differences:
            more = f" and {len(differences) - _DIFFERENCES_TOLD} more" if len(differences) > _DIFFERENCES_TOLD else ""
            _LOGGER.warning(
                "%s belongs to a run with another input or other settings (%s%s): this run writes %s "
                "(--overwrite would replace the other)",
                self._asked_path, "; ".join(differences[:_DIFFERENCES_TOLD]), more, self.shown_path,
            )  # fmt: skip
        return self

    def _try_to_open(self) -> list[str]:
        """Open the job under the present name; or say how the job that stands there differs.

        Raises:
            JobError: another run is writing the output.
        """
        try:
            self._check_output()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        self._spec = JobSpec(kind=self._kind, input=self.input, settings=self._settings, files=self._files)
        try:
            self._lock = lock_output(self.folder / "lock", self.out_path)
        except JobError:
            if not self._overwrite and (differences := self._differences_from_the_other()):
                return differences
            raise
        try:
            if differences := self._open():
                self._lock.release()
            return differences
        except BaseException:
            self._lock.release()
            raise

    def _differences_from_the_other(self) -> list[str]:
        """How the job that is being run under the present name differs; it may have begun a moment ago."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while (stored := load_job_file(self._job_file)) is None and time.monotonic() < until:
            time.sleep(0.05)
        return [] if stored is None else self._differences(stored[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_writers()
        finally:
            self._lock.release()

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the settings and the files they name."""
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
        output_bytes = self._output.put(self.index, rows_files)
        failed = self.index.failed_records
        self.completion = Completion(
            answered=self.input.records - failed,
            failed=failed,
            retryable=self.index.retryable_records,
            rows=int(self.index.rows.sum(dtype=np.int64)),
            failed_rows=int(self.index.failed_rows.sum(dtype=np.int64)),
            output_bytes=output_bytes,
            failures=[
                (int(self._plan.numbers[place]), error)
                for place, error in itertools.islice(self._output.errors(self.index), _FAILURES_LISTED)
            ],
        )
        self._save()
        self._remove_parts()
        return self.completion

    def _check_input(self) -> None:
        if not self.input_path.exists():
            raise DataError(f"the input {self.input_path} does not exist{self._input_from}.")
        if not self.input_path.is_file():
            raise DataError(f"the input {self.input_path} is not a regular file; save the records to a file first.")
        if self.out_path.exists() and self.out_path.samefile(self.input_path):
            raise SettingsError(f"the output {self.out_path} is the input itself; choose another file.")
        next(read_lines(self.input_path, max_records=1), None)  # a file of another kind is refused before we write

    def _check_output(self) -> None:
        if self.out_path.exists():
            if not self.out_path.is_file():
                raise SettingsError(f"the output {self.out_path} is not a regular file; choose a file name.")
            if not self._overwrite and self._is_foreign():
                raise JobError(
                    f"{self.out_path} exists and was not made by this job; choose another output, "
                    "or replace it with --overwrite."
                )

    def _is_foreign(self) -> bool:
        """Whether something stands there that no job made."""
        return self.out_path.exists() and not self._job_file.exists() and bool(self.out_path.stat().st_size)

    def _read_plan(self, max_records: int | None) -> tuple[InputSummary, Plan]:
        return make_plan(self.input_path, max_records=max_records, group_of=self._group_of)

    def _open(self) -> list[str]:
        """Take up the job where it is; or say how the job that stands there differs, and leave it as it is."""
        self.completion, differences = self._adopt_stored()
        if differences:
            return differences
        self.index = ResultIndex(self.input.records)
        (self.folder / "output.tmp").unlink(missing_ok=True)
        if self.completion and not (self._retry_failed and self.completion.retryable):
            self.resumed = self.input.records
            self._remove_parts()
            return []
        self._output.adopt(self.index)
        self._read_parts()
        self.completion = None
        self._save()
        if self._retry_failed:
            self.index.reopen_failed()
        self.resumed = self.index.done - self.index.reopened
        return []

    def _adopt_stored(self) -> tuple[Completion | None, list[str]]:
        """Check the stored job against this one: what it came to if it is complete, and how it differs."""
        stored = None if self._overwrite else load_job_file(self._job_file)
        if stored is None:
            self._forget_results()
            return None, []
        spec, completion = stored
        if differences := self._differences(spec):
            if completion is None and not self._has_results():
                self._forget_results()  # nothing was done yet: nothing to mix up
                return None, []
            return None, differences
        # Equal settings may be spelled differently (1 and 1.0), and the parts carry the first spelling.
        self._spec = dataclasses.replace(spec, input=self.input)
        if completion is None:
            return None, []
        if not self.out_path.exists():
            _LOGGER.warning("%s was complete but its output is gone: making it again", self.out_path)
            return None, []
        if self.out_path.stat().st_size != completion.output_bytes:
            raise edited(self.out_path)
        if spec.input.records < self.input.records:
            new = self.input.records - spec.input.records
            _LOGGER.info("%s is complete for %d records: %d more to do", self.out_path, spec.input.records, new)
            return None, []
        return completion, []

    def _differences(self, stored: JobSpec) -> list[str]:
        """How a stored job differs from this one, in words; none if this one is the same or goes on from it."""
        if found := self._spec.differences(stored):
            return found
        if self._keep_larger and stored.input.records > self.input.records:
            larger, plan = self._read_plan(stored.input.records)
            if larger == stored.input:
                self.input, self._plan = larger, plan
                self._spec = dataclasses.replace(self._spec, input=larger)
        if not self._spec.extends(stored, self.input_path):
            return [other_input(stored.input, self.input)]
        return []

    def _has_results(self) -> bool:
        """Whether a run has left results, in parts or in an output that it was to go on from."""
        parts = self.folder.glob("part-*.rows")
        return self._output.is_indexed() or any(path.stat().st_size for path in parts)

    def _forget_results(self) -> None:
        self._output.forget()
        self._remove_parts()

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

    def _close_writers(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _input_stamp(self) -> tuple[int, int]:
        status = self.input_path.stat()
        return status.st_size, status.st_mtime_ns


def _part_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))
