"""A job turns an input JSONL into an output JSONL by a function of one record, and survives any interruption.

State lives in the folder `<output>.job` beside the output: the job file, the lock, the plan and the part files.
When a job is finished the parts are removed. The job file stays, so that the same start again finds the job complete,
and so does an index of the output, so that failed records can be tried again and a longer input goes on from it.

A job whose settings differ from those of the job that stands under its output's name takes the next name that is free
(`out.jsonl`, `out_2.jsonl`, …) or has equal settings: no command destroys or mixes what another one made.
"""

from __future__ import annotations

import dataclasses
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
from parallelmind.data.run_names import numbered
from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.lock import lock_output
from parallelmind.jobs.merge import merge_parts
from parallelmind.jobs.outcome import Outcome
from parallelmind.jobs.parts import Part, PartWriter, storage_error
from parallelmind.jobs.plan import GroupOf, Plan, PlanReader, make_plan
from parallelmind.jobs.spec import Completion, JobSpec, load_job_file, other_input, save_job_file

__all__ = ["HEAD_PART", "Job", "WorkItem", "job_folder"]

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
_ERROR_KEPT = 500
HEAD_PART = 0
"""The part of the process that leads a run; rank r writes part r + 1."""
_INDEX_NAME = "output-index.npz"
_OUTPUT_PART = -2
"""Stands for the output of an earlier run, where its rows are read from."""
_BLOCK = 4096
_DIFFERENCES_TOLD = 3


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
        """The outputs that the job may take, in this order; real paths, since two names of one output must meet."""
        asked = Path(os.path.realpath(self._asked_path))
        for stem in numbered(asked.stem):
            yield asked.with_name(stem + asked.suffix)

    def move_to(self, out_path: Path) -> None:
        """Write this one of the `names`."""
        self.out_path = out_path
        self.folder = job_folder(out_path)
        self._job_file = self.folder / "job.json"
        self._parts.clear()

    @property
    def shown_path(self) -> Path:
        """The output as the user would spell it."""
        asked = self._asked_path
        if self.out_path == Path(os.path.realpath(asked)):
            return asked
        beside = asked.with_name(self.out_path.name)
        return beside if os.path.realpath(beside) == str(self.out_path) else self.out_path

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
            stored = None if self._overwrite else load_job_file(self._job_file)
            if stored is not None and (differences := self._differences(stored[0])):
                return differences
            raise
        try:
            if differences := self._open():
                self._lock.release()
            return differences
        except BaseException:
            self._lock.release()
            raise

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
        rows_files = {number: part.rows_path for number, part in self._parts.items()} | {_OUTPUT_PART: self.out_path}
        temporary = self.folder / "output.tmp"
        output_bytes, output_hash = merge_parts(self.index, rows_files, temporary, self.out_path)
        self.index.settle(_OUTPUT_PART)
        self._save_index(output_hash)
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
        self._read_results()
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
            raise JobError(
                f"{self.out_path} was edited after its job was complete; choose another output, "
                "or begin anew with --overwrite."
            )
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

    def _read_results(self) -> None:
        """What is in the output of an earlier run, then what the parts hold."""
        kept = self.folder / _INDEX_NAME
        if self.index.adopt(kept, self.out_path, _OUTPUT_PART):
            _LOGGER.debug("%d results stand in %s", self.index.done, self.out_path)
        self._read_parts()

    def _save_index(self, output_hash: str) -> None:
        kept = self.folder / _INDEX_NAME
        temporary = kept.with_suffix(".tmp")
        try:
            self.index.save(temporary, output_hash)
            temporary.replace(kept)
        except OSError as error:
            raise storage_error(kept, error) from error

    def _has_results(self) -> bool:
        """Whether a run has left results, in parts or in an output that it was to go on from."""
        parts = self.folder.glob("part-*.rows")
        return (self.folder / _INDEX_NAME).exists() or any(path.stat().st_size for path in parts)

    def _forget_results(self) -> None:
        (self.folder / _INDEX_NAME).unlink(missing_ok=True)
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

    def _failures(self) -> Iterator[tuple[int, str]]:
        """(line, reason) of the first failed records of a finished output."""
        for place, _ in zip(self.index.failed_places(), range(_FAILURES_LISTED), strict=False):
            with self.out_path.open("rb") as file:
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
