"""The ledger: what stands in it, for us and for any other reader, and what is left of it when something goes wrong."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelmind.errors import JobError
from parallelmind.io.line_table import InputSummary
from parallelmind.jobs.identity import Identity, JobCompletion
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.quarantine import Suspicion
from parallelmind.jobs.results import BY_COORDINATOR, IN_OUTPUT, ResultIndex
from parallelmind.jobs.stored import Output, Results, StoredJob
from tests.disks import room_for

KEYS = np.frombuffer(bytes(range(160)), np.dtype((np.void, 16)))
JOB = StoredJob(
    identity=Identity(kind="test", settings={"a": 1, "字": None}, files={"model": "1"}),
    input=InputSummary(records=10, blank_lines=0, size=99, digest="d"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def add(ledger: Ledger, records: list[int], payloads: list[bytes], *, worker: int = 1, attempt: int = 1) -> None:
    count = len(records)
    measures: list[list[Any]] = [[1] * count, [0] * count, [False] * count, [""] * count]
    measures += [[3] * count, [4] * count, [0.5] * count, [0] * count]
    results = Results(
        records=np.array(records),
        lines=np.array(records) + 1,
        keys=KEYS[records],
        worker=worker,
        attempts=np.full(count, attempt),
        sizes=[len(payload) for payload in payloads],
        measures=measures,
        payload=b"".join(payloads),
    )
    ledger.add(results)


def load(ledger: Ledger, output: Output | None = None, records: int = 10) -> ResultIndex:
    index = ResultIndex(records)
    assert ledger.load(index, KEYS[:records], output) == 0
    return index


def test_the_job_comes_back_as_it_was(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.job() is None
    output = Output(digest="x", size=5, records=10, through=7)
    completion = JobCompletion(
        answered=9, failed=1, retryable=1, rows=11, failed_rows=1, output_bytes=5, failures=[(3, "bad")]
    )
    for job in (JOB, StoredJob(**vars(JOB) | {"output": output, "completion": completion})):
        ledger.save_job(job)
        assert Ledger(path, read_only=True).job() == job
    ledger.close()


def test_results_come_back_and_their_rows(path: Path) -> None:
    ledger = Ledger(path)
    add(ledger, [2, 0], [b'{"a": 1}\n', '{"字": 2}\n'.encode()])
    add(ledger, list(range(3, 10)) * 20, [b"%d\n" % n for n in range(140)], worker=BY_COORDINATOR)
    ledger.commit()
    ledger.close()
    index = load(ledger := Ledger(path))
    assert index.todo().tolist() == [1]
    for record, rows in ((0, '{"字": 2}\n'.encode()), (2, b'{"a": 1}\n'), (9, b"139\n")):
        block, offset, size = (int(column[record]) for column in (index.block, index.offset, index.size))
        assert ledger.read(block, offset, size) == rows
    assert index.worker[[0, 3]].tolist() == [1, BY_COORDINATOR]
    assert (index["tokens_out"][0], index["seconds"][0]) == (4, 0.5)
    ledger.close()


def test_any_sqlite_tool_reads_it_while_it_is_written(path: Path) -> None:
    ledger = Ledger(path)
    add(ledger, [1], ['{"字": 1}\n'.encode()])
    ledger.commit()
    add(ledger, [1], [b'{"later": 1}\n'], attempt=2)
    with sqlite3.connect(path) as other:
        found = other.execute("SELECT record, attempt, worker, tokens_out, output FROM latest").fetchall()
        assert found == [(1, 1, 0, 4, '{"字": 1}\n')]
        ledger.commit()
        assert other.execute("SELECT attempt, output FROM latest").fetchall() == [(2, '{"later": 1}\n')]
    ledger.close()


def test_what_was_not_committed_is_gone_and_nothing_else(path: Path) -> None:
    ledger = Ledger(path)
    add(ledger, [1], [b"1\n"])
    ledger.commit()
    add(ledger, [2], [b"2\n"])
    ledger._file.close()  # as a kill leaves it
    index = load(Ledger(path))
    assert np.flatnonzero(index.has_result).tolist() == [1]


def test_a_result_is_bound_to_its_record(path: Path) -> None:
    """An edited record does not keep the old answer, whatever else says that the input is the same."""
    ledger = Ledger(path)
    add(ledger, [0, 1, 2], [b"0\n", b"1\n", b"2\n"])
    edited = KEYS.copy()
    edited[1] = b"another" + bytes(9)
    index = ResultIndex(10)
    assert ledger.load(index, edited, None) == 1
    assert np.flatnonzero(index.has_result).tolist() == [0, 2]
    assert load(ledger, records=1).todo().tolist() == []


def test_results_of_a_finished_output_have_their_rows_there(path: Path) -> None:
    ledger = Ledger(path)
    add(ledger, [1, 0], [b"one\n", b"0\n"])
    add(ledger, [1], [b"again\n"], attempt=2)
    output = Output(digest="x", size=8, records=2, through=ledger.last_result)
    ledger.finish(StoredJob(**vars(JOB) | {"output": output}))
    add(ledger, [2], [b"2\n"])
    ledger.commit()
    index = load(ledger, output)
    assert index.block[:4].tolist() == [IN_OUTPUT, IN_OUTPUT, 3, 0]
    assert (index.offset[:2].tolist(), index.size[:2].tolist()) == ([0, 2], [2, 6])
    with pytest.raises(JobError, match=r"1 results of the output are missing"):
        ledger.load(ResultIndex(10), KEYS, Output(digest="x", size=8, records=3, through=output.through))
    ledger.forget_results(through=output.through)
    assert np.flatnonzero(load(ledger).has_result).tolist() == [2]


def test_leases_and_quarantine(path: Path) -> None:
    ledger = Ledger(path)
    ledger.note_lease(1, 0, False, np.array([4, 5, 6, 9]))
    ledger.note_lease(2, 1, True, np.array([3]))
    assert [(fence, records.tolist()) for fence, records in ledger.leases()] == [(1, [4, 5, 6, 9]), (2, [3])]
    assert ledger._file.execute("SELECT records FROM leases").fetchall() == [("[[4, 6], [9, 9]]",), ("[[3, 3]]",)]
    ledger.drop_leases([1])
    assert [fence for fence, _ in ledger.leases()] == [2]
    for lost in (1, 2):
        ledger.save_suspicion(7, b"7", Suspicion(lost=lost, reason="was killed", error_class="WorkerDied"))
    assert ledger.quarantine() == {7: Suspicion(lost=2, reason="was killed", error_class="WorkerDied")}


def test_a_ledger_of_another_version_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    ledger.save_job(JOB)
    ledger._file.execute("UPDATE job SET format = 99")
    ledger.close()
    with pytest.raises(JobError, match=r"ledger\.sqlite has format 99, this version reads \d+; take the version"):
        Ledger(path)


def test_results_of_a_version_with_fewer_measures_have_the_defaults(path: Path) -> None:
    ledger = Ledger(path)
    ledger.save_job(JOB)
    for view in (
        "DROP VIEW latest",
        "ALTER TABLE results DROP COLUMN retries",
        "ALTER TABLE results DROP COLUMN final",
    ):
        ledger._file.execute(view)
    ledger._file.execute(
        "INSERT INTO results (record, line, key, attempt, worker, block, offset, size, rows, failed_rows, error_class,"
        " tokens_in, tokens_out, seconds) VALUES (0, 1, 'k', 1, 0, 1, 0, 2, 1, 0, '', 3, 4, 0.5)"
    )
    ledger.close()
    for read_only in (True, False, True):
        ledger = Ledger(path, read_only=read_only)
        assert ledger.ask("SELECT record, tokens_out, retries, final FROM results") == [(0, 4, 0, 0)]
        ledger.close()
    with sqlite3.connect(path) as file:
        file.execute("ALTER TABLE results ADD COLUMN later")
    with pytest.raises(JobError, match=r"columns that this version does not know \(later\); take the version"):
        Ledger(path)


@pytest.mark.parametrize("column", ["input", "settings", "completion"])
def test_a_damaged_job_is_named(path: Path, column: str) -> None:
    ledger = Ledger(path)
    ledger.save_job(JOB)
    text = "{half" if column == "settings" else '{"records": 1}'
    ledger._file.execute(f"UPDATE job SET {column} = ?", (text,))
    with pytest.raises(JobError, match=r"ledger\.sqlite is damaged .*begin anew with --overwrite"):
        ledger.job()


def test_a_disk_without_locks_is_done_without_and_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoLocks(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA journal_mode = WAL":
                error = sqlite3.OperationalError("locking protocol")
                error.sqlite_errorname = "SQLITE_PROTOCOL"
                raise error
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, **more, factory=NoLocks))
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(path)
    assert "the disk has no locks that SQLite can use (locking protocol): it does without" in caplog.text
    add(ledger, [1], [b"1\n"])
    ledger.commit()
    ledger.close()
    assert np.flatnonzero(load(Ledger(path)).has_result).tolist() == [1]


@pytest.mark.parametrize(("room", "errorname"), [(0, "SQLITE_IOERR_WRITE"), (20_000, "SQLITE_IOERR_SHMSIZE")])
def test_a_full_disk_is_not_taken_for_one_without_locks(path: Path, room: int, errorname: str) -> None:
    with (
        room_for(room),
        pytest.raises(JobError, match=r"cannot write .*ledger\.sqlite: disk I/O error\. Free some space") as caught,
    ):
        Ledger(path)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert caught.value.__cause__.sqlite_errorname == errorname
