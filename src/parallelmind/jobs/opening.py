"""Open a job: find the output that it may write, lock it, and take up what earlier runs did.

State lives in the folder `<output>.job` beside the output: the lock, the ledger and the statistics. A job whose
settings differ from those of the job that stands under its output's name takes the next name that is free
(`out.jsonl`, `out_2.jsonl`, …) or has equal settings: no command destroys or mixes what another one made.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.io.jsonl import read_lines
from parallelmind.io.line_table import InputSummary
from parallelmind.io.locks import HeldLock
from parallelmind.io.numbered_names import numbered_paths, spelled_beside
from parallelmind.jobs.identity import Identity, JobCompletion, other_input
from parallelmind.jobs.ledger import Ledger, Output, Results, StoredJob
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.output import digest_of, errors, write_output
from parallelmind.jobs.results import BY_COORDINATOR, RecordResult, ResultIndex
from parallelmind.jobs.source import JobInput
from parallelmind.jobs.sqlite_file import NoJobYetError, remove_ledger
from parallelmind.jobs.storage import job_folder, ledger_path, put_in_place, storage_error
from parallelmind.jobs.task import Task

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
_DIFFERENCES_TOLD = 3
_PATIENCE_SECONDS = 5.0
"""For the ledger of a run that has just taken the lock."""


class OpenJob:
    """A job that this process may write, until it is closed: its input, its ledger, and what is known of each record.

    Raises:
        ParallelMindError: the input, the output or the ledger is not as it must be, or another run is writing.
    """

    out_path: Path
    folder: Path
    ledger: Ledger
    index: ResultIndex
    completion: JobCompletion | None
    """What the job came to, if it is finished."""
    resumed: int
    """Records that had a result when the job was opened and are not tried again."""

    def __init__(self, task: Task, options: RunOptions) -> None:
        self.task = task
        self._options = options
        self._identity = Identity.of(task)
        self._place(next(numbered_paths(task.out_path)))
        self._check_input()
        self.input = JobInput(task.input_path, max_records=task.max_records, group_of=task.group_of)
        try:
            self._open_first_that_fits()
        except BaseException:
            self.input.close()
            raise

    @property
    def shown_path(self) -> Path:
        """The output as the user would spell it."""
        return spelled_beside(self.task.out_path, self.out_path)

    @property
    def summary(self) -> InputSummary:
        return self.input.summary

    def todo(self) -> NDArray[np.int64]:
        """The records that have no result, in the order of work."""
        return self.input.in_order(self.index.todo())

    def finished_index(self) -> ResultIndex:
        """What is known of each record of a job that is complete."""
        if self.index.done < len(self.input):  # it was complete when it was opened
            self.ledger.load(self.index, self.input.keys, self._stored.output)
        return self.index

    def add(self, results: Results) -> None:
        """Note results; they are safe after the next `ledger.commit`.

        Raises:
            JobError: the disk is full or failing.
        """
        block, offsets = self.ledger.add(results, self.input.keys[results.records].tobytes())
        self.index.add(
            results.records,
            block=block,
            offset=offsets,
            size=np.array(results.sizes, np.int64),
            attempt=results.attempts,
            worker=results.worker,
            measures=results.measures,
        )

    def add_one(self, record: int, result: RecordResult) -> None:
        """Note what the coordinator makes of a record."""
        records = np.array([record])
        measures = [[value] for value in result[1:]]
        self.add(
            Results(
                records=records,
                worker=BY_COORDINATOR,
                attempts=self.index.attempt[records] + 1,
                sizes=[len(result.payload)],
                measures=measures,
                payload=result.payload,
            )
        )

    def finish(self) -> JobCompletion:
        """Put the output in place: the rows of all records, in input order.

        Raises:
            JobError: the disk is full or failing, or the input or what stands at the output was edited meanwhile.
        """
        if missing := len(self.input) - self.index.done:
            raise JobError(f"{missing} records of {self.input.path} have no result; start the same command again.")
        self.input.check_unchanged()
        self._standing_output()
        self.ledger.commit()
        temporary = self.folder / "output.tmp"
        size, digest = write_output(self.index, self.ledger, self.out_path, temporary)
        coming = Output(digest=digest, size=size, records=len(self.input), through=self.ledger.last_result)
        # Noted first: whichever output a kill leaves in place, the ledger knows it.
        self._save(next_output=coming)
        put_in_place(temporary, self.out_path)
        return self._complete(coming)

    def close(self) -> None:
        try:
            self.ledger.close()
        finally:
            self.input.close()
            self._lock.release()

    def __enter__(self) -> OpenJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self, out_path: Path) -> None:
        self.out_path = out_path
        self.folder = job_folder(out_path)
        self._ledger_path = ledger_path(self.folder)

    def _check_input(self) -> None:
        path = self.task.input_path
        if not path.exists():
            raise DataError(f"the input {path} does not exist{self.task.input_hint}.")
        if not path.is_file():
            raise DataError(f"the input {path} is not a regular file; save the records to a file first.")
        if self.out_path.exists() and self.out_path.samefile(path):
            raise SettingsError(f"the output {self.out_path} is the input itself; choose another file.")
        next(read_lines(path, max_records=1), None)  # a file of another kind is refused before we write

    def _open_first_that_fits(self) -> None:
        differences: list[str] = []
        for place, out_path in enumerate(numbered_paths(self.task.out_path)):
            self._place(out_path)
            if place and self._is_foreign():
                continue
            if not (found := self._try_to_open()):
                break
            differences = differences or found
        if differences:
            more = f" and {len(differences) - _DIFFERENCES_TOLD} more" if len(differences) > _DIFFERENCES_TOLD else ""
            _LOGGER.warning(
                "%s belongs to a run with another input or other settings (%s%s): this run writes %s "
                "(--overwrite would replace the other)",
                self.task.out_path, "; ".join(differences[:_DIFFERENCES_TOLD]), more, self.shown_path,
            )  # fmt: skip

    def _try_to_open(self) -> list[str]:
        """Open the job under the present name; or say how the job that stands there differs.

        Raises:
            JobError: another run is writing the output.
        """
        self._check_output()
        busy = JobError(
            f"another run is writing {self.out_path}; wait until it ends, or give another output (--out_path or "
            "--output_file)."
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = HeldLock(self.folder / "lock", busy=busy)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        except JobError:
            if not self._options.overwrite and (differences := self._differences_from_the_other()):
                return differences
            raise
        try:
            if differences := self._open():
                self._lock.release()
            return differences
        except BaseException:
            self._lock.release()
            raise

    def _check_output(self) -> None:
        if self.out_path.exists() and not self.out_path.is_file():
            raise SettingsError(f"the output {self.out_path} is not a regular file; choose a file name.")
        if self._options.overwrite or self._ledger_path.exists():
            return
        if _has_content(self.out_path):
            raise _foreign(self.out_path)
        if self._is_of_earlier_version():
            raise JobError(
                f"the job in {self.folder} was begun by an earlier version; finish it with that version, "
                "or begin anew with --overwrite."
            )

    def _is_foreign(self) -> bool:
        """Whether something stands there that no job of this version made."""
        return not self._ledger_path.exists() and (_has_content(self.out_path) or self._is_of_earlier_version())

    def _is_of_earlier_version(self) -> bool:
        return (self.folder / "job.json").exists()

    def _differences_from_the_other(self) -> list[str]:
        """How the job that is being run under the present name differs; it may have begun a moment ago."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            if (stored := read_job(self._ledger_path)) is not None:
                return self._differences(stored)
            time.sleep(0.05)
        return []

    def _open(self) -> list[str]:
        """Take up the job where it is; or say how the job that stands there differs, and leave it as it is."""
        if self._options.overwrite:
            remove_ledger(self._ledger_path)
        (self.folder / "output.tmp").unlink(missing_ok=True)
        self.ledger = Ledger(self._ledger_path)
        try:
            return self._adopt()
        except BaseException:
            self.ledger.close()
            raise

    def _adopt(self) -> list[str]:
        stored = self.ledger.job()
        if stored is not None and (differences := self._differences(stored)):
            if stored.completion is not None or stored.output is not None or self.ledger.has_results:
                self.ledger.close()
                return differences
            stored = None  # nothing was done yet: nothing to mix up
        # Equal settings may be spelled differently (1 and 1.0): the first spelling stays.
        self._stored = self._new_job() if stored is None else stored
        standing = self._standing_output()
        self.index = ResultIndex(len(self.input))
        completion = self._stored.completion
        if completion is not None and standing is not None and self._stored.input.records >= len(self.input):
            if not (self._options.retry_failed and completion.retryable):
                self.completion, self.resumed = completion, len(self.input)
                return []
        elif completion is not None and standing is not None:
            new = len(self.input) - self._stored.input.records
            _LOGGER.info("%s is complete for %d records: %d more to do", self.out_path, self._stored.input.records, new)
        self._load(standing)
        return []

    def _new_job(self) -> StoredJob:
        """Which, with --overwrite, may replace what stands there: an output of its own that has no results yet."""
        output = None
        if self._options.overwrite and self.out_path.exists():
            size = self.out_path.stat().st_size
            output = Output(digest=digest_of(self.out_path), size=size, records=0, through=0)
        return StoredJob(identity=self._identity, input=self.summary, output=output)

    def _standing_output(self) -> Output | None:
        """The output that stands there, which must be one that the job knows, byte for byte.

        Raises:
            JobError: it is another one, which is not to be replaced.
        """
        stored = self._stored
        if not self.out_path.exists():
            if stored.completion is not None:
                _LOGGER.warning("%s was complete but its output is gone: making it again", self.out_path)
            return None
        digest = digest_of(self.out_path)
        # The next one, if the job was killed between putting it in place and saying so.
        for known in (stored.next_output, stored.output):
            if known is not None and digest == known.digest:
                return known
        if stored.output is not None:
            raise _edited(self.out_path)
        if _has_content(self.out_path):
            raise _foreign(self.out_path)
        return None

    def _load(self, standing: Output | None) -> None:
        """Take up the results, to go on from them."""
        if standing is None and self._stored.output is not None:
            self.ledger.forget_results(through=self._stored.output.through)
            self._stored = dataclasses.replace(self._stored, output=None)
        if dropped := self.ledger.load(self.index, self.input.keys, standing):
            _LOGGER.warning("%d results in %s are not of these records: made again", dropped, self._ledger_path)
        self.completion = None
        self._stored = dataclasses.replace(self._stored, input=self.summary, completion=None)
        if standing is not None and standing == self._stored.next_output:
            self._stored = dataclasses.replace(self._stored, output=standing, next_output=None)
        self._save()
        if self._options.retry_failed:
            self.index.reopen_failed()
        self.resumed = self.index.done - self.index.reopened

    def _differences(self, stored: StoredJob) -> list[str]:
        """How a stored job differs from this one, in words; none if this one is the same or goes on from it."""
        if found := self._identity.differences(stored.identity):
            return found
        if self._options.keep_larger and stored.input.records > len(self.input):
            larger = JobInput(self.task.input_path, max_records=stored.input.records, group_of=self.task.group_of)
            if larger.summary == stored.input:
                self.input.close()
                self.input = larger
            else:
                larger.close()
        return [] if self.input.extends(stored.input) else [other_input(stored.input, self.summary)]

    def _save(self, next_output: Output | None = None) -> None:
        self._stored = dataclasses.replace(self._stored, next_output=next_output)
        self.ledger.save_job(self._stored)

    def _complete(self, output: Output) -> JobCompletion:
        index = self.index
        self.completion = JobCompletion(
            answered=len(self.input) - index.failed,
            failed=index.failed,
            retryable=index.retryable,
            rows=int(index["rows"].sum(dtype=np.int64)),
            failed_rows=int(index["failed_rows"].sum(dtype=np.int64)),
            output_bytes=output.size,
            failures=[
                (int(self.input.numbers[record]), error)
                for record, error in itertools.islice(errors(index, self.out_path), _FAILURES_LISTED)
            ],
        )
        self._stored = dataclasses.replace(self._stored, output=output, next_output=None, completion=self.completion)
        self.ledger.finish(self._stored)
        return self.completion


def read_job(path: Path) -> StoredJob | None:
    """The job that a ledger holds, which another process may be writing; None if there is none yet.

    Raises:
        JobError: the ledger is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        ledger = Ledger(path, read_only=True)
    except NoJobYetError:
        return None
    try:
        return ledger.job()
    finally:
        ledger.close()


def _edited(path: Path) -> JobError:
    return JobError(
        f"{path} was edited after its job was complete; choose another output, or begin anew with --overwrite."
    )


def _foreign(path: Path) -> JobError:
    return JobError(
        f"{path} exists and was not made by this job; move it away, choose another output, or replace it with "
        "--overwrite."
    )


def _has_content(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_size)
