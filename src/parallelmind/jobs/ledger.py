"""The ledger of a job: one SQLite file that holds everything known of it, written by the coordinator alone.

| table | a row |
|---|---|
| `job` | the job: identity, input, what it came to, and which output its finished results stand in |
| `results` | a result of a record, appended as it comes; of several the latest counts (`id`) |
| `blocks` | the output rows of results that came together; dropped once the output is in place |
| `leases` | records that are being worked on |
| `quarantine` | records that were being worked on when a worker died |

A result whose record the input does not have any more has no number of a record (NULL) until the job is complete: it
counts again if the record comes back. The view `latest` shows the latest result of each record and, while the job
runs, its output rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallelmind.errors import JobError
from parallelmind.jobs.quarantine import Suspicion
from parallelmind.jobs.results import BY_COORDINATOR, MEASURES, RecordResult, ResultIndex
from parallelmind.jobs.sqlite_file import SqliteFile, damaged
from parallelmind.jobs.stored import JOB_COLUMNS, Output, Results, StoredJob, StoredResult

_FORMAT = 5
_ROWS_A_STATEMENT = 64
"""Each statement gives the interpreter away once; statements of single rows cost twice as much."""
_FETCHED = 2**13
_RESULT = ("record", "line", "key", "attempt", "worker", "block", "offset", "size", *MEASURES)
_SCHEMA = f"""
CREATE TABLE job (format INTEGER, {", ".join(f"{name} TEXT" for name in JOB_COLUMNS)});
CREATE TABLE results (id INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(_RESULT)});
CREATE TABLE blocks (id INTEGER PRIMARY KEY, rows BLOB);
CREATE TABLE leases (fence INTEGER PRIMARY KEY, worker, alone, records TEXT);
CREATE TABLE quarantine (record INTEGER PRIMARY KEY, key, together, alone, lost, reason, error_class);
CREATE VIEW latest AS
    SELECT results.*, CAST(substr(blocks.rows, results.offset + 1, results.size) AS TEXT) AS output
    FROM (SELECT max(id) AS newest FROM results WHERE record IS NOT NULL GROUP BY record)
    JOIN results ON results.id = newest LEFT JOIN blocks ON blocks.id = results.block
    ORDER BY results.record;
"""


class Ledger(SqliteFile):
    """The file at `path`; what is changed stands there after the next `commit`.

    Args:
        read_only: another process may be writing.
    Raises:
        NoJobYetError: it is to be read, and a run is about to make it.
        JobError: the file is damaged or of another version, or cannot be read or written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(path, _SCHEMA, read_only=read_only)
        with self._errors():
            self._check_format()
            self._next_block = self._number("SELECT coalesce(max(id), 0) + 1 FROM blocks")
            self._next_result = self._number("SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence")

    def job(self) -> StoredJob | None:
        """None if no run has saved it yet.

        Raises:
            JobError: the file is damaged.
        """
        with self._errors():
            row = self._file.execute(f"SELECT {', '.join(JOB_COLUMNS)} FROM job").fetchone()
        if row is None:
            if self.has_results:
                raise damaged(self.path, "it has results and no job")
            return None
        try:
            return StoredJob.of_texts(*row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(self.path, error) from error

    def save_job(self, job: StoredJob) -> None:
        """Store the job, and everything before, so that it survives a power cut."""
        with self._errors():
            self.commit()
            self._file.execute("PRAGMA synchronous = FULL")
            self.put_job(job)
            self.commit()
            self._file.execute("PRAGMA synchronous = NORMAL")

    def put_job(self, job: StoredJob) -> None:
        """Store the job with the next `commit`."""

        with self._errors():
            self._begin()
            self._file.execute("DELETE FROM job")
            self._file.execute(
                f"INSERT INTO job (format, {', '.join(JOB_COLUMNS)}) VALUES (?{', ?' * len(JOB_COLUMNS)})",
                (_FORMAT, *job.as_texts()),
            )

    def finish(self, job: StoredJob) -> None:
        """Store the job whose output is in place: nothing else of it is needed any more."""
        with self._errors():
            self.commit()
            self._begin()
            for table in ("blocks", "leases", "quarantine", "results WHERE record IS NULL"):
                self._file.execute(f"DELETE FROM {table}")
            self.save_job(job)
            with contextlib.suppress(sqlite3.OperationalError):  # no room for what is to make room: the job is complete
                for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    self._file.execute(statement)

    @property
    def has_results(self) -> bool:
        return self._next_result > 1

    @property
    def last_result(self) -> int:
        return self._next_result - 1

    def add(self, results: Results) -> tuple[int, NDArray[np.int64]]:
        """Append results; returns the number of their block, and the place of each in it."""
        block, sizes = self._next_block, np.array(results.sizes, np.int64)
        offsets = np.cumsum(sizes) - sizes
        count = len(sizes)
        worker = None if results.worker == BY_COORDINATOR else results.worker - 1
        rows = zip(
            [None if record < 0 else record for record in results.records.tolist()],
            results.lines.tolist(),
            results.keys.tolist(),
            results.attempts.tolist(),
            itertools.repeat(worker, count),
            itertools.repeat(block, count),
            offsets.tolist(),
            results.sizes,
            *results.measures,
            strict=True,
        )
        with self._errors():
            self._begin()
            self._file.execute("INSERT INTO blocks VALUES (?, ?)", (block, results.payload))
            self._insert(list(rows))
        self._next_block += 1
        self._next_result += count
        return block, offsets

    def forget_results(self, *, through: int) -> None:
        """The output that these results stood in is gone."""
        with self._errors():
            self._begin()
            self._file.execute("DELETE FROM results WHERE id <= ?", (through,))

    def load(self, index: ResultIndex, keys: NDArray[Any], output: Output | None) -> int:
        """Take over all results, of which those up to `output` stand there; returns how many did not fit their record.

        Args:
            keys: the hashes of all records.
        Raises:
            JobError: the results of the output are not all there.
        """
        with self._errors():
            if output is None:
                return self._load(index, keys, after=0, through=self.last_result)
            self._load(index, keys, after=0, through=output.through)
            if index.done != output.records:
                raise damaged(self.path, f"{output.records - index.done} results of the output are missing")
            index.settle(output.records)
            return self._load(index, keys, after=output.through, through=self.last_result)

    @contextlib.contextmanager
    def renumbering(self) -> Iterator[int]:
        """In this block the results up to the given id are replaced by what is added, all at once or not at all."""
        with self._errors():
            self.commit()
            self._begin()
            block, result = self._next_block, self._next_result
            try:
                yield result - 1
                self._file.execute("DELETE FROM results WHERE id < ?", (result,))
                self._file.execute("DELETE FROM blocks WHERE id < ?", (block,))
                self._file.execute("DELETE FROM leases")
                self.commit()
            except BaseException:
                if self._file.in_transaction:  # where the disk is full, SQLite has done it
                    self._file.execute("ROLLBACK")
                self._next_block, self._next_result = block, result
                raise

    def newest(self, last: int, through: int | None) -> Iterator[list[StoredResult]]:
        """The newest result of every record, of those up to `last`; those up to `through` stand in the output."""
        standing = 0 if through is None else through
        placed = self._file.execute(
            "SELECT record, size FROM results WHERE id IN"
            " (SELECT max(id) FROM results WHERE id <= ? AND record IS NOT NULL GROUP BY record) ORDER BY record",
            (standing,),
        )
        records, lengths = np.fromiter(itertools.chain.from_iterable(placed), np.int64).reshape(-1, 2).T
        offsets = np.zeros(int(records.max(initial=-1)) + 1, np.int64)
        offsets[records] = np.cumsum(lengths) - lengths
        columns = ", ".join(_RESULT[2:])
        found = self._file.execute(
            f"SELECT id, record, line, {columns} FROM results WHERE id IN"
            " (SELECT max(id) FROM results WHERE id <= ? GROUP BY key) ORDER BY id",
            (last,),
        )
        while rows := found.fetchmany(_FETCHED):
            yield [
                StoredResult(key, line, attempt, worker, None, int(offsets[record]), size, tuple(measures))
                if number <= standing and record is not None
                else StoredResult(key, line, attempt, worker, block, offset, size, tuple(measures))
                for number, record, line, key, attempt, worker, block, offset, size, *measures in rows
            ]

    def bound_to(self) -> Iterator[list[bytes]]:
        """What the results are bound to."""
        found = self._file.execute("SELECT DISTINCT key FROM results")
        while rows := found.fetchmany(_FETCHED):
            yield [key for (key,) in rows]

    def move_suspicions(self, find: Callable[[list[bytes]], list[int]]) -> None:
        """Number the records in quarantine anew, by their keys; those that are nowhere (below 0) are forgotten."""
        rows = self._file.execute("SELECT * FROM quarantine").fetchall()
        self._file.execute("DELETE FROM quarantine")
        places = find([key for _, key, *_ in rows])
        moved = [(place, *row[1:]) for place, row in zip(places, rows, strict=True) if place >= 0]
        self._file.executemany("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)", moved)

    def read(self, block: int, offset: int, size: int) -> bytes:
        """Rows of a block."""
        with self._errors(), self._file.blobopen("blocks", "rows", block, readonly=True) as blob:
            blob.seek(offset)
            return blob.read(size)

    def note_lease(self, fence: int, worker: int, alone: bool, records: NDArray[np.int64]) -> None:
        with self._errors():
            self._begin()
            self._file.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (fence, worker, alone, _ranges(records)))

    def drop_leases(self, fences: Sequence[int]) -> None:
        if fences:
            with self._errors():
                self._begin()
                self._file.executemany("DELETE FROM leases WHERE fence = ?", [(fence,) for fence in fences])

    def leases(self) -> list[tuple[int, NDArray[np.int64]]]:
        """(fence, records) of each lease that is out."""
        with self._errors():
            found = self._file.execute("SELECT fence, records FROM leases").fetchall()
        return [(fence, _records(text)) for fence, text in found]

    def save_suspicion(self, record: int, key: bytes, suspicion: Suspicion) -> None:
        with self._errors():
            self._begin()
            values = (record, key, *dataclasses.astuple(suspicion))
            self._file.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def quarantine(self) -> dict[int, Suspicion]:
        with self._errors():
            return {record: Suspicion(*values) for record, _, *values in self._file.execute("SELECT * FROM quarantine")}

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """What any reader could ask."""
        with self._errors():
            return self._file.execute(question).fetchall()

    def _load(self, index: ResultIndex, keys: NDArray[Any], *, after: int, through: int) -> int:
        chosen = f"SELECT {', '.join(_RESULT)} FROM results WHERE id > ? AND id <= ? AND record IS NOT NULL ORDER BY id"
        found = self._file.execute(chosen, (after, through))
        dropped = 0
        while rows := found.fetchmany(_FETCHED):
            numbers, _, stored, attempt, worker, block, offset, size, *measures = zip(*rows, strict=True)
            records = np.array(numbers, np.int64)
            known = records < len(index)
            same = np.zeros(len(rows), np.bool_)
            bound = np.frombuffer(b"".join(stored), keys.dtype)
            same[known] = bound[known] == keys[records[known]]
            dropped += int(np.count_nonzero(known & ~same))
            if not same.all():
                rows = list(itertools.compress(rows, same.tolist()))
                if not rows:
                    continue
                numbers, _, stored, attempt, worker, block, offset, size, *measures = zip(*rows, strict=True)
                records = np.array(numbers, np.int64)
            index.add(
                records,
                block=np.array(block, np.int32),
                offset=np.array(offset, np.int64),
                size=np.array(size, np.int64),
                attempt=np.array(attempt, np.int64),
                worker=np.array([BY_COORDINATOR if rank is None else rank + 1 for rank in worker], np.int64),
                measures=measures,
            )
        return dropped

    def _insert(self, rows: list[tuple[Any, ...]]) -> None:
        one = f"({', '.join('?' * len(_RESULT))})"
        insert = f"INSERT INTO results ({', '.join(_RESULT)}) VALUES "
        whole = len(rows) - len(rows) % _ROWS_A_STATEMENT
        several = insert + ", ".join([one] * _ROWS_A_STATEMENT)
        for start in range(0, whole, _ROWS_A_STATEMENT):
            values = itertools.chain.from_iterable(rows[start : start + _ROWS_A_STATEMENT])
            self._file.execute(several, tuple(values))
        self._file.executemany(insert + one, rows[whole:])

    def _check_format(self) -> None:
        row = self._file.execute("SELECT format FROM job").fetchone()
        columns = [name for _, name, *_ in self._file.execute("PRAGMA table_info(results)")]
        if not columns:
            raise damaged(self.path, "no such table: results")
        unknown = sorted({*columns} - {"id", *_RESULT})
        missing = [name for name in _RESULT if name not in columns]
        if (row is not None and row[0] != _FORMAT) or unknown:
            found = (
                f"columns that this version does not know ({', '.join(unknown)})"
                if unknown
                else (f"format {row[0]!r}, this version reads {_FORMAT}")
            )
            raise JobError(
                f"{self.path} has {found}; take the version that began the job, or begin anew with --overwrite."
            )
        if not {*missing} <= RecordResult._field_defaults.keys():
            raise damaged(self.path, f"no such column: {missing[0]}")
        if missing:
            self._add_measures({name: RecordResult._field_defaults[name] for name in missing})

    def _add_measures(self, defaults: Mapping[str, Any]) -> None:
        """Give the results of a job that an earlier version began the measures that it did not have."""
        if self._read_only:
            columns = ", ".join(f"{value!r} AS {name}" for name, value in defaults.items())
            self._file.execute(f"CREATE TEMP VIEW results AS SELECT *, {columns} FROM main.results")
            return
        for name, value in defaults.items():
            self._file.execute(f"ALTER TABLE results ADD COLUMN {name} DEFAULT {value!r}")


def _ranges(records: NDArray[np.int64]) -> str:
    """The records as JSON: [first, last] of each stretch."""
    breaks = np.flatnonzero(np.diff(records) != 1)
    firsts, lasts = records[np.append(0, breaks + 1)], records[np.append(breaks, len(records) - 1)]
    return json.dumps(np.stack((firsts, lasts), axis=1).tolist())


def _records(ranges: str) -> NDArray[np.int64]:
    parts = [np.arange(first, last + 1) for first, last in json.loads(ranges)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
