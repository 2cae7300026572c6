"""Open a job: find the output that it may write, lock it, and take up what earlier runs did.

State lives in the folder `<output>.job` beside the output: the lock, the ledger and the statistics. A job whose
settings differ from those of the job that stands under its output's name takes the next name that is free
(`out.jsonl`, `out_2.jsonl`, …) or has equal settings: no command destroys or mixes what another one made. The same
command on an input that was edited goes on with the same job (`carrying`).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError, SettingsError
from parallelmind.io.compression import STDIN
from parallelmind.io.line_table import InputSummary
from parallelmind.io.locks import HeldLock
from parallelmind.io.numbered_names import numbered_paths, spelled_beside
from parallelmind.jobs.carrying import NOWHERE, Places, carry_over, shares_records
from parallelmind.jobs.identity import Identity, JobCompletion, other_input
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.output import errors
from parallelmind.jobs.place import BusyError, JobPlace
from parallelmind.jobs.results import BY_COORDINATOR, RecordResult, ResultIndex
from parallelmind.jobs.source import PIPE, JobInput, check_input
from parallelmind.jobs.sqlite_file import remove_ledger
from parallelmind.jobs.stored import Output, Results, StoredJob
from parallelmind.jobs.task import Task

_LOGGER = logging.getLogger(__name__)
_FAILURES_LISTED = 20
_DIFFERENCES_TOLD = 3


class OpenJob:
    """A job that this process may write, until it is closed: its input, its ledger, and what is known of each record.

    Raises:
        ParallelMindError: the input, the output or the ledger is not as it must be, or another run is writing.
    """

    place: JobPlace
    ledger: Ledger
    index: ResultIndex
    completion: JobCompletion | None
    """What the job came to, if it is finished."""
    resumed: int
    """Records that had a result when the job was opened and are not tried again."""
    _lock: HeldLock
    _stored: StoredJob

    def __init__(self, task: Task, options: RunOptions) -> None:
        self.task = task
        self._options = options
        self._identity = Identity.of(task)
        self.place = JobPlace(next(numbered_paths(task.out_path)))
        self.input = self._read_input(max_records=task.max_records)
        try:
            self._open_first_that_fits()
        except BaseException:
            self.input.close()
            raise

    @property
    def out_path(self) -> Path:
        """The output; a real path."""
        return self.place.out_path

    @property
    def folder(self) -> Path:
        """Where the job's state is."""
        return self.place.folder

    @property
    def shown_path(self) -> Path:
        """The output as the user would spell it."""
        return spelled_beside(self.task.out_path, self.out_path)

    @property
    def files(self) -> Mapping[str, str]:
        """Hashes of the files that the output depends on, as they were when the job was opened."""
        return self._identity.files

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

    def add(
        self,
        records: NDArray[np.int64],
        *,
        worker: int,
        sizes: Sequence[int],
        measures: Sequence[Sequence[Any]],
        payload: bytes,
    ) -> None:
        """Note results, see `Results`; they are safe after the next `ledger.commit`.

        Raises:
            JobError: the disk is full or failing.
        """
        attempts = self.index.attempt[records].astype(np.int64) + 1
        results = Results(
            records=records,
            lines=self.input.numbers[records],
            keys=self.input.keys[records],
            worker=worker,
            attempts=attempts,
            sizes=sizes,
            measures=measures,
            payload=payload,
        )
        block, offsets = self.ledger.add(results)
        self.index.add(
            records,
            block=block,
            offset=offsets,
            size=np.array(sizes, np.int64),
            attempt=attempts,
            worker=worker,
            measures=measures,
        )

    def add_one(self, record: int, result: RecordResult) -> None:
        """Note what the coordinator makes of a record."""
        self.add(
            np.array([record]),
            worker=BY_COORDINATOR,
            sizes=[len(result.payload)],
            measures=[[value] for value in result[1:]],
            payload=result.payload,
        )

    def take_up_edits(self) -> None:
        """The input was edited while the job ran: go on with it as it is now.

        Raises:
            ParallelMindError: it is gone or cannot be read, or the disk is full.
        """
        self.ledger.commit()
        reopened = self.input.keys[self.index.reopened_records()].tolist()
        before, self.input = self.input, self._read_input(max_records=self.input.max_records)
        before.close()
        self._go_on(self.place.standing(self._stored))
        places = Places(self.input.keys).find(reopened)
        self.index.reopen_failed(places[places != NOWHERE])

    def finish(self) -> JobCompletion:
        """Put the output in place: the rows of all records, in input order.

        Raises:
            JobError: the disk is full or failing, or the input or what stands at the output was edited meanwhile.
        """
        if missing := len(self.input) - self.index.done:
            raise JobError(f"{missing} records of {self.input.path} have no result; start the same command again.")
        if not self.input.is_current():
            raise JobError(
                f"{self.input.path} was edited at the last moment; start the same command again: it works on what "
                "changed."
            )
        self.place.standing(self._stored)
        self.ledger.commit()
        size, digest = self.place.output.write(self.index, self.ledger)
        coming = Output(digest=digest, size=size, records=len(self.input), through=self.ledger.last_result)
        # Noted first: whichever output a kill leaves in place, the ledger knows it.
        self._save(next_output=coming)
        self.place.output.put_in_place()
        return self._complete(coming)

    def close(self) -> None:
        try:
            self.ledger.close()
        finally:
            self.input.close()
            self.place.output.clean()
            self._lock.release()

    def __enter__(self) -> OpenJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_input(self, *, max_records: int | None) -> JobInput:
        task, path = self.task, self.task.input_path
        check_input(path, task.input_hint)
        if path != STDIN and os.path.exists(self.out_path) and self.out_path.samefile(path):
            raise SettingsError(f"the output {self.out_path} is the input itself; choose another file.")
        return JobInput(
            path,
            source=task.source,
            scratch=self.out_path.parent,
            max_records=max_records,
            group_of=task.group_of,
        )

    def _open_first_that_fits(self) -> None:
        differences: list[str] = []
        for number, out_path in enumerate(numbered_paths(self.task.out_path)):
            self.place = JobPlace(out_path)
            if number and self.place.is_foreign:
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
        self.place.check(overwrite=self._options.overwrite)
        try:
            self._lock = self.place.lock()
        except BusyError:
            stored = None if self._options.overwrite else self.place.soon_stored()
            if stored is not None and (differences := self._differences(stored, None)):
                return differences
            raise
        try:
            if differences := self._open():
                self._lock.release()
            return differences
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> list[str]:
        """Take up the job where it is; or say how the job that stands there differs, and leave it as it is."""
        if self._options.overwrite:
            remove_ledger(self.place.ledger)
        self.place.output.clean()
        self.ledger = Ledger(self.place.ledger)
        try:
            return self._adopt()
        except BaseException:
            self.ledger.close()
            raise

    def _adopt(self) -> list[str]:
        stored = self.ledger.job()
        if stored is not None and (differences := self._differences(stored, self.ledger)):
            if stored.completion is not None or stored.output is not None or self.ledger.has_results:
                self.ledger.close()
                return differences
            stored = None  # nothing was done yet: nothing to mix up
        # Equal settings may be spelled differently (1 and 1.0): the first spelling stays.
        self._stored = self._new_job() if stored is None else stored
        standing = self.place.standing(self._stored)
        completion = self._stored.completion
        if completion is not None:
            if standing is None:
                _LOGGER.warning("%s was complete but its output is gone: making it again", self.out_path)
            elif self._stored.input.same_records(self.summary) and not (
                self._options.retry_failed and completion.retryable
            ):
                self.index = ResultIndex(len(self.input))
                self.completion, self.resumed = completion, len(self.input)
                return []
        self._go_on(standing)
        if self._options.retry_failed:
            self.index.reopen_failed()
        self.resumed = self.index.done - self.index.reopened
        return []

    def _new_job(self) -> StoredJob:
        """Which, with --overwrite, may replace what stands there: an output of its own that has no results yet."""
        output = None
        if self._options.overwrite and self.out_path.exists():
            size = self.out_path.stat().st_size
            output = Output(digest=self.place.output.digest(), size=size, records=0, through=0)
        return StoredJob(identity=self._identity, input=self.summary, source=self.input.source, output=output)

    def _go_on(self, standing: Output | None) -> None:
        """Take up the results, to go on from them, whatever the input was when they were made."""
        stored = self._stored
        if standing is None and stored.output is not None:
            self.ledger.forget_results(through=stored.output.through)
        stored = self._stored = dataclasses.replace(stored, output=standing, next_output=None, source=self.input.source)
        if not self.input.extends(stored.input):
            self._stored = carry_over(self.ledger, stored, self.place.output, self.input, self.task)
        self.index = ResultIndex(len(self.input))
        if dropped := self.ledger.load(self.index, self.input.keys, self._stored.output):
            _LOGGER.warning("%d results in %s are not of these records: made again", dropped, self.place.ledger)
        if not self.summary.same_records(stored.input):
            _LOGGER.info(
                "%s was edited since, or went on: %d of its %d %s have their results, the others are worked on",
                self.task.source or self.input.path, self.index.done, len(self.input), self.task.noun,
            )  # fmt: skip
        self.completion = None
        self._stored = self._stored.on_input(self.summary, self._stored.output)
        self._save()

    def _differences(self, stored: StoredJob, ledger: Ledger | None) -> list[str]:
        """How a stored job differs from this one, in words; none if this one is the same or goes on from it."""
        if found := self._identity.differences(stored.identity):
            return found
        if self._options.keep_larger and stored.input.records > len(self.input):
            self.input.read_more(stored.input)
        return [] if self._goes_on_from(stored, ledger) else [other_input(stored.input, self.summary)]

    def _goes_on_from(self, stored: StoredJob, ledger: Ledger | None) -> bool:
        """Whether the input is that of the stored job as it was, with more behind it, or edited."""
        if self.input.extends(stored.input):
            return True
        most = self.task.max_records
        if stored.source != self.input.source or (most is not None and stored.input.records > most):
            return False  # another file, or a smaller part of it that is asked for
        return self.input.source != PIPE or (ledger is not None and shares_records(ledger, self.input))

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
                for record, error in itertools.islice(errors(index, self.place.output), _FAILURES_LISTED)
            ],
        )
        self._stored = dataclasses.replace(self._stored, output=output, next_output=None, completion=self.completion)
        self.ledger.finish(self._stored)
        return self.completion
