"""`parallelmind job`: what it shows of a job in every state."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from parallelmind.cli.main import main
from parallelmind.errors import JobError
from parallelmind.jobs.opening import OpenJob
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import run_job
from tests.jobs.doubling import fails_on, job
from tests.jobs.tasks import Records, write_input


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.jsonl", ({"n": n} for n in range(10)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_a_job_from_its_interruption_to_its_end(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = job(data, out, {"a": 1, "字": "x"})
    start.interrupt(2, 3, 7, work=fails_on(3))
    assert main(["job", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"{out}: test, interrupted", "10 records = 2 successful + 1 failed + 7 to do"]
    assert "1 of the failed records can be tried again" in shown
    assert "worker 0: 3 records, 1 failed, 0.000 s a record, 0 tokens in, 0 out" in shown
    assert "errors of class Error: 1" in shown
    assert "failed: record 4: 3 is bad" in shown
    assert shown[-2:] == ["setting a: 1", 'setting 字: "x"']
    with OpenJob(start.task, start.options):
        main(["job", str(out)])
        assert f"{out}: test, running" in capsys.readouterr().out
    start.complete(fails_on(3))
    main(["job", str(out)])
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"{out}: test, complete", "10 records = 9 successful + 1 failed + 0 to do"]
    assert "failed: record 4: 3 is bad" in shown


def test_a_reason_may_have_any_characters(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "one\u2028two\x85three"
    job(data, out).interrupt(2, work=lambda _: [{"error": reason}])
    assert main(["job", str(out)]) == 0
    assert reason in capsys.readouterr().out


def test_programs_read_json(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(Records(data, out), RunOptions())
    assert main(["job", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["state"], shown["done"], shown["records"]) == ("test", "complete", 10, 10)
    assert shown["workers"] == [
        {"rank": 0, "records": 10, "failed": 0, "mean_seconds": 0.5, "tokens_in": 0, "tokens_out": 20, "retries": 0}
    ]


def test_suspects_are_shown(data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_input(data, ({"n": n, "do": "die" if n == 1 else "refuse" if n == 2 else None} for n in range(4)))
    with pytest.raises(Exception, match="records have no result"):
        run_job(Records(data, out), RunOptions(workers=1))
    main(["job", str(out)])
    shown = capsys.readouterr().out
    assert "in quarantine: record 2: a worker was lost while it had this record (1 times with others" in shown


def test_an_output_without_a_job_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl has no job" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE job SET settings = NULL",
        "DELETE FROM job",
        "DROP VIEW latest; DROP TABLE results",
        "DROP VIEW latest; DROP TABLE results; DROP TABLE job",
    ],
)
def test_a_damaged_ledger_is_told_by_the_job_and_by_the_look_at_it(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    job(data, out).interrupt(2, 3)
    with sqlite3.connect(f"{out}.job/ledger.sqlite") as ledger:
        ledger.executescript(damage)
    ledger.close()
    message = f"the ledger {out}.job/ledger.sqlite is damaged ("
    assert main(["job", str(out)]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "); begin anew with --overwrite." in shown
    assert "write " not in shown
    with pytest.raises(JobError) as raised:
        job(data, out).complete()
    assert message in str(raised.value)
    assert job(data, out, overwrite=True).complete() == list(range(10))


def test_a_complete_job_that_lacks_results_is_not_shown_as_complete(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(data, out).complete()
    with sqlite3.connect(f"{out}.job/ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM results WHERE record < 4")
    ledger.close()
    assert main(["job", str(out)]) == 1
    assert "is damaged (4 results of a complete job are missing)" in capsys.readouterr().err


def test_a_ledger_that_is_a_folder_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "out.jsonl.job" / "ledger.sqlite"
    ledger.mkdir(parents=True)
    assert main(["job", str(tmp_path / "out.jsonl")]) == 1
    assert f"cannot read {ledger}" in capsys.readouterr().err


def test_a_job_whose_ledger_has_nothing_yet_has_just_begun_or_was_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "out.jsonl.job" / "ledger.sqlite"
    ledger.parent.mkdir()
    ledger.touch()
    with FileLock(ledger.with_name("lock")):
        assert main(["job", str(tmp_path / "out.jsonl")]) == 1
    assert "has just begun; look again in a moment" in capsys.readouterr().err
    assert main(["job", str(tmp_path / "out.jsonl")]) == 1
    assert "did not get far enough to be shown; start its command again" in capsys.readouterr().err


def test_a_finished_job_is_shown_where_nothing_can_be_written(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(data, out).complete()
    memory = out.with_name("out.jsonl.job") / "ledger.sqlite-shm"
    memory.symlink_to(out.parent / "no folder" / "file")  # as on a read-only disk, SQLite cannot make it
    assert main(["job", str(out)]) == 0
    assert "10 records = 10 successful + 0 failed + 0 to do" in capsys.readouterr().out
