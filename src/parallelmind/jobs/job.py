"""A job turns an input JSONL into an output JSONL by a function of one record, and survives any interruption.

State lives in the folder `<output>.job` beside the output: the job file, the lock, and the part files. When a
job is finished the parts are removed, unless records failed: those can still be tried again. The job file
stays, so that the same start again finds the job complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from parallelmind.data.jsonl import InputSummary, JsonLine, read_lines, scan
from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.jobs.index import ResultIndex
from parallelmind.jobs.lock import lock_output
from parallelmind.jobs.merge import merge_parts
from parallelmind.jobs.parts import Entry, PartWriter, cut_torn_end, read_entries, read_header, storage_error
from parallelmind.jobs.ranks import SINGLE, Rank
from parallelmind.jobs.spec import Completion, JobSpec, load_job_file, save_job_file

__all__ = ["Job", "WorkItem"]

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
_ERROR_KEPT = 500


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One record that has no result yet."""

    line: JsonLine
    key: str
    """Hash of line number, content and settings."""


class Job:
    """Opened as a context manager; then `pending`, `write` for each item in any order, and `finish`."""

    input: InputSummary
    """What the input holds; set when opened."""
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
        rank: Rank = SINGLE,
    ) -> None:
        if rank.world_size > 1:
            raise SettingsError(
                f"WORLD_SIZE is {rank.world_size}, but several ranks are not supported yet; "
                "start one process, without torchrun."
            )
        self._kind = kind
        self._input_path = input_path
        # The real path: two names of one output must meet at one lock.
        self._out_path = Path(os.path.realpath(out_path))
        self._settings = settings
        self._files = files or {}
        self._max_records = max_records
        self._retry_failed = retry_failed
        self._overwrite = overwrite
        self._folder = self._out_path.with_name(self._out_path.name + ".job")
        self._job_file = self._folder / "job.json"
        self._own_part = self._folder / f"part-{rank.rank:05d}.jsonl"
        self._writer: PartWriter | None = None

    def __enter__(self) -> Job:
        try:
            self._check_paths()
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self._folder, error) from error
        self._lock = lock_output(self._folder / "lock", self._out_path)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()
        self._lock.release()

    def pending(self) -> Iterator[WorkItem]:
        """Read the input and yield the records that have no result, in input order.

        Raises:
            JobError: the input was edited while the job ran.
        """
        for line in read_lines(self._input_path, max_records=self._max_records):
            if line.index >= self.input.records:
                break
            item = WorkItem(line=line, key=self._key(line))
            if self._index.is_pending(line.index, item.key):
                yield item
        if self._input_stamp() != self._stamp_when_opened:
            raise JobError(
                f"{self._input_path} was edited while the job ran; restore it, or begin anew with --overwrite."
            )

    def write(self, item: WorkItem, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store the output rows of one record; a row with an `error` makes it a failed record.

        Raises:
            JobError: the disk is full or failing.
        """
        assert self._writer
        place = item.line.index
        payload = b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows)
        errors = [str(row["error"]) for row in rows if row.get("error") is not None]
        entry = Entry(
            index=place,
            line=item.line.number,
            key=item.key,
            attempt=self._index.attempts(place) + 1,
            rows=len(rows),
            failed_rows=len(errors),
            error=errors[0][:_ERROR_KEPT] if errors else None,
            size=len(payload),
            crc=zlib.crc32(payload),
        )
        offset = self._writer.append(entry, payload)
        self._index.add(entry, part=self._parts.index(self._own_part), offset=offset)

    def finish(self) -> Completion:
        """Put the output in place: the rows of all records, in input order.

        Raises:
            JobError: the disk is full or failing.
        """
        assert self._writer
        if missing := self.input.records - self._index.done:
            raise JobError(f"{missing} records of {self._input_path} have no result; start the same command again.")
        output_bytes = merge_parts(self._index, self._parts, self._folder / "output.tmp", self._out_path)
        failed = self._index.failed_records
        self.completion = Completion(
            answered=self.input.records - failed,
            failed=failed,
            rows=self._index.rows,
            failed_rows=self._index.failed_rows,
            output_bytes=output_bytes,
            failures=list(self._failures()),
        )
        self._save()
        self._writer.close()
        self._writer = None
        if not failed:
            self._remove_parts()
        return self.completion

    def _check_paths(self) -> None:
        if not self._input_path.exists():
            raise DataError(f"the input {self._input_path} does not exist.")
        if not self._input_path.is_file():
            raise DataError(f"the input {self._input_path} is not a regular file; save the records to a file first.")
        if self._out_path.exists():
            if not self._out_path.is_file():
                raise SettingsError(f"the output {self._out_path} is not a regular file; choose a file name.")
            if self._out_path.samefile(self._input_path):
                raise SettingsError(f"the output {self._out_path} is the input itself; choose another file.")
            if not self._overwrite and not self._job_file.exists() and self._out_path.stat().st_size:
                raise JobError(
                    f"{self._out_path} exists and was not made by this job; choose another output, "
                    "or replace it with --overwrite."
                )
        next(read_lines(self._input_path, max_records=1), None)  # a file of another kind is refused before we write

    def _open(self) -> None:
        self._stamp_when_opened = self._input_stamp()
        self.input = scan(self._input_path, max_records=self._max_records)
        self._spec = JobSpec(kind=self._kind, input=self.input, settings=self._settings, files=self._files)
        self._index = ResultIndex(self.input.records)
        self._parts = sorted({*self._folder.glob("part-*.jsonl"), self._own_part})
        self.completion = self._adopt_stored()
        (self._folder / "output.tmp").unlink(missing_ok=True)
        if self.completion and not (self._retry_failed and self.completion.failed):
            self.resumed = self.input.records
            if not self.completion.failed:
                self._remove_parts()
            return
        self._read_parts()
        self.completion = None
        self._save()
        try:
            self._writer = PartWriter(self._own_part)
        except OSError as error:
            raise storage_error(self._own_part, error) from error
        if self._retry_failed:
            self._index.reopen_failed()
        self.resumed = self._index.done - self._index.reopened

    def _adopt_stored(self) -> Completion | None:
        """Check the stored job against this one; return what it came to if it is complete."""
        stored = None if self._overwrite else load_job_file(self._job_file)
        if stored is None:
            self._remove_parts()
            return None
        spec, completion = stored
        if differences := self._spec.differences(spec):
            if completion is None and not any(part.exists() and part.stat().st_size for part in self._parts):
                return None  # nothing was done yet: nothing to mix up
            raise JobError(
                f"{self._out_path} belongs to a job with another input or other settings: "
                f"{'; '.join(differences)}. Start with what it was begun with, choose another output, "
                "or begin anew with --overwrite."
            )
        if completion is None:
            return None
        if not self._out_path.exists():
            _LOGGER.warning("%s was complete but its output is gone: making it again", self._out_path)
            return None
        if self._out_path.stat().st_size != completion.output_bytes:
            raise JobError(
                f"{self._out_path} was edited after its job was complete; choose another output, "
                "or begin anew with --overwrite."
            )
        return completion

    def _read_parts(self) -> None:
        for number, part in enumerate(self._parts):
            if not part.exists():
                continue
            end = 0
            for offset, after, entry in read_entries(part):
                if entry.index >= len(self._index):
                    raise JobError(f"{part} does not belong to this input; begin anew with --overwrite.")
                self._index.add(entry, part=number, offset=offset)
                end = after
            if torn := cut_torn_end(part, end):
                _LOGGER.warning("dropped %d bytes of an unfinished write at the end of %s", torn, part)

    def _save(self) -> None:
        try:
            save_job_file(self._job_file, self._spec, self.completion)
        except OSError as error:
            raise storage_error(self._job_file, error) from error

    def _remove_parts(self) -> None:
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _failures(self) -> Iterator[tuple[int, str]]:
        for place, _ in zip(self._index.failed_places(), range(_FAILURES_LISTED), strict=False):
            part, offset = self._index.location(place)
            with self._parts[part].open("rb") as file:
                file.seek(offset)
                entry = read_header(file)
            if entry:
                yield entry.line, entry.error or ""

    def _key(self, line: JsonLine) -> str:
        hasher = hashlib.blake2b(f"{line.number} {line.size} ".encode(), digest_size=8)
        hasher.update(line.content)
        hasher.update(self._spec.settings_digest)
        return hasher.hexdigest()

    def _input_stamp(self) -> tuple[int, int]:
        status = self._input_path.stat()
        return status.st_size, status.st_mtime_ns
