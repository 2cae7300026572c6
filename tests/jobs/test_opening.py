import contextlib
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from parallelmind.errors import DataError, JobError, SettingsError
from parallelmind.jobs.ledger import Ledger
from parallelmind.jobs.stored import StoredJob
from tests.disks import room_for
from tests.jobs.doubling import double, expected, fails_on, job, rows


def test_rows_are_merged_in_input_order_whatever_the_order_of_writing(data: Path, out: Path) -> None:
    assert job(data, out).complete(shuffled=True) == list(range(10))
    assert rows(out) == expected()
    assert "é" in out.read_text("utf-8")


def test_an_interrupted_job_does_only_what_is_left(data: Path, out: Path) -> None:
    job(data, out).interrupt(2, 3, 7)
    assert not out.exists()
    with job(data, out).open() as second:
        assert second.resumed == 3
    assert job(data, out).complete() == [0, 1, 4, 5, 6, 8, 9]
    assert rows(out) == expected()


def test_a_job_killed_before_the_merge_only_merges(data: Path, out: Path) -> None:
    job(data, out).interrupt(*range(10))
    (out.with_name("out.jsonl.job") / "output.tmp").write_text("half of the out")
    assert job(data, out).complete() == []
    assert rows(out) == expected()
    assert not (out.with_name("out.jsonl.job") / "output.tmp").exists()


def test_a_finished_job_is_complete_and_keeps_no_rows(data: Path, out: Path) -> None:
    job(data, out).complete()
    before = out.stat().st_mtime_ns
    with job(data, out).open() as again:
        assert again.completion is not None
        assert (again.completion.answered, again.completion.failed, again.completion.rows) == (10, 0, 15)
    assert out.stat().st_mtime_ns == before
    assert b"twice" not in (out.with_name("out.jsonl.job") / "ledger.sqlite").read_bytes()


def test_equal_records_are_each_done(data: Path, out: Path) -> None:
    data.write_text('{"n": 3}\n' * 4)
    assert job(data, out).complete() == [0, 1, 2, 3]
    assert rows(out) == double(b'{"n": 3}') * 4


def test_failed_records_are_tried_again_only_on_request(data: Path, out: Path) -> None:
    assert job(data, out).complete(fails_on(3, 5)) == list(range(10))
    assert rows(out) == expected(fails_on(3, 5))
    with job(data, out).open() as again:
        assert again.completion
        assert (again.completion.answered, again.completion.failed, again.completion.failed_rows) == (8, 2, 2)
        assert again.completion.failures == [(4, "3 is bad"), (6, "5 is bad")]
    assert job(data, out, retry_failed=True).complete(fails_on(5)) == [3, 5]
    assert rows(out) == expected(fails_on(5))
    assert job(data, out, retry_failed=True).complete() == [5]
    assert rows(out) == expected()
    assert job(data, out, retry_failed=True).complete() == []


def test_an_interrupted_retry_keeps_the_old_output_and_goes_on(data: Path, out: Path) -> None:
    job(data, out).complete(fails_on(3, 5))
    job(data, out, retry_failed=True).interrupt(3)
    assert rows(out) == expected(fails_on(3, 5))
    assert job(data, out, retry_failed=True).complete() == [5]
    assert rows(out) == expected()


def test_settings_may_change_while_nothing_is_done(data: Path, out: Path) -> None:
    with job(data, out, {"a": 1}).open():
        pass
    assert job(data, out, {"a": 2}).complete() == list(range(10))


def test_statistics_that_cannot_be_saved_fail_no_job(data: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = out.with_name("out.jsonl.job")
    (folder / "stats.json").mkdir(parents=True)
    assert job(data, out).complete() == list(range(10))
    assert rows(out) == expected()
    assert f"the statistics are not saved: cannot write {folder / 'stats.json'}" in caplog.text
    assert sorted(os.listdir(folder)) == ["ledger.sqlite", "lock", "stats.json", "writer.json"]


def test_a_ledger_that_is_a_folder_is_named(data: Path, out: Path) -> None:
    (out.with_name("out.jsonl.job") / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(JobError, match=r"cannot write .*ledger\.sqlite"):
        job(data, out).complete()
    with pytest.raises(JobError, match=r"cannot replace .*ledger\.sqlite"):
        job(data, out, overwrite=True).complete()


def test_overwrite_begins_anew_and_keeps_the_old_output_until_the_end(data: Path, out: Path) -> None:
    job(data, out).complete()
    with job(data, out, {"a": 2}, overwrite=True).open() as second:
        assert second.resumed == 0
        assert rows(out) == expected()
    assert job(data, out, {"a": 2}).complete(fails_on(1)) == list(range(10))
    assert rows(out) == expected(fails_on(1))


def test_an_output_that_is_not_the_jobs_is_not_replaced(data: Path, out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(JobError, match="was not made by this job"):
        job(data, out).open()
    assert os.listdir(out.parent) == ["in.jsonl", "out.jsonl"] or not out.with_name("out.jsonl.job").exists()
    assert job(data, out, overwrite=True).complete() == list(range(10))
    assert rows(out) == expected()


def test_an_output_edited_after_the_end_is_not_replaced(data: Path, out: Path) -> None:
    job(data, out).complete()
    out.write_text("my notes")
    with pytest.raises(JobError, match="was edited after its job was complete"):
        job(data, out).open()


def test_an_output_edited_at_the_same_size_is_not_taken_for_complete(data: Path, out: Path) -> None:
    job(data, out).complete()
    out.write_text(out.read_text("utf-8").replace("0", "7"), "utf-8")
    edited = out.read_bytes()
    with pytest.raises(JobError, match=r"was edited after its job was complete.*--overwrite"):
        job(data, out).complete()
    assert out.read_bytes() == edited


def test_a_file_put_at_the_output_of_an_interrupted_job_is_not_replaced(data: Path, out: Path) -> None:
    job(data, out).interrupt(2, 3, 7)
    out.write_text("MY OWN NOTES\n")
    with pytest.raises(JobError, match=r"was not made by this job; move it away, .*--overwrite"):
        job(data, out).complete()
    assert out.read_text() == "MY OWN NOTES\n"
    out.unlink()
    assert job(data, out).complete() == [0, 1, 4, 5, 6, 8, 9]


def test_a_file_put_at_the_output_while_the_job_runs_is_not_replaced(data: Path, out: Path) -> None:
    def disturbed(content: bytes) -> list[dict[str, Any]]:
        out.write_text("MY OWN NOTES\n")
        return double(content)

    with pytest.raises(JobError, match="was not made by this job"):
        job(data, out).complete(disturbed)
    assert out.read_text() == "MY OWN NOTES\n"
    out.unlink()
    assert job(data, out).complete() == []
    assert rows(out) == expected()


def test_an_empty_ledger_makes_no_file_the_jobs_own(data: Path, out: Path) -> None:
    out.write_text("precious")
    folder = out.with_name("out.jsonl.job")
    folder.mkdir()
    (folder / "ledger.sqlite").touch()
    for _ in range(2):
        with pytest.raises(JobError, match="was not made by this job"):
            job(data, out).complete()
    assert out.read_text() == "precious"


def test_an_empty_file_at_the_output_is_replaced(data: Path, out: Path) -> None:
    out.touch()
    job(data, out).interrupt(2)
    assert job(data, out).complete() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert rows(out) == expected()


def test_an_interrupted_overwriting_goes_on_without_overwrite(data: Path, out: Path) -> None:
    out.write_text("no longer wanted")
    job(data, out, overwrite=True).interrupt(2)
    assert out.read_text() == "no longer wanted"
    assert job(data, out).complete() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert rows(out) == expected()


def test_a_job_of_an_earlier_version_is_not_begun_anew_without_a_word(data: Path, out: Path) -> None:
    folder = out.with_name("out.jsonl.job")
    folder.mkdir()
    for name in ("job.json", "part-0.rows"):
        (folder / name).write_text("{}")
    with pytest.raises(JobError, match=r"begun by an earlier version; finish it with that version, .*--overwrite"):
        job(data, out).complete()
    assert job(data, out, overwrite=True).complete() == list(range(10))


def test_a_removed_output_is_made_again(data: Path, out: Path) -> None:
    job(data, out).complete()
    out.unlink()
    assert job(data, out).complete() == list(range(10))
    assert rows(out) == expected()


def test_a_second_job_on_an_output_is_refused_by_any_name(data: Path, out: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    with job(data, out).open():
        for name in (out, link):
            with pytest.raises(JobError, match=r"another run is writing .*out\.jsonl"):
                job(data, name).open()
    job(data, link).complete()
    assert link.is_symlink()
    assert rows(out) == expected()


def test_only_the_first_records(data: Path, out: Path) -> None:
    assert job(data, out, max_records=4).complete() == [0, 1, 2, 3]


@pytest.fixture
def no_log() -> Iterator[None]:
    """Test processes cannot tell each other of a log with half of a surrogate pair in it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log")
def test_names_that_are_not_utf8(data: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/in-\xff.jsonl"))
    data.rename(odd)
    settings = {"model": str(odd)}
    out = Path(os.fsdecode(bytes(tmp_path) + b"/out-\xff.jsonl"))
    assert job(odd, out, settings).complete() == list(range(10))
    odd.write_bytes(odd.read_bytes().replace(b"3", b"33"))
    again = job(odd, out, settings)
    assert again.complete() == [3]
    assert again.out_path == out


def test_names_that_are_too_long_are_told(data: Path, out: Path) -> None:
    for length in (252, 300):
        with pytest.raises(SettingsError, match=r"cannot be: File name too long; choose another"):
            job(data, out.with_name("x" * length)).complete()
    with pytest.raises(DataError, match="does not exist"):
        job(data.with_name("x" * 300), out).complete()


def test_a_look_at_a_job_is_not_taken_for_a_run_that_writes(data: Path, out: Path) -> None:
    job(data, out).interrupt(0)
    looked = FileLock(out.with_name("out.jsonl.job") / "lock", thread_local=False)
    looked.acquire()
    threading.Timer(0.2, looked.release).start()
    assert job(data, out).complete() == list(range(1, 10))


def test_no_room_to_make_the_ledger_small_fails_no_job(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write_text("".join(f'{{"n": {n}}}\n' for n in range(3000)))
    save = Ledger.save_job

    def save_and_fill(ledger: Ledger, stored: StoredJob) -> None:
        save(ledger, stored)
        if stored.completion is not None:
            disk.enter_context(room_for(2**14))

    with contextlib.ExitStack() as disk:
        monkeypatch.setattr(Ledger, "save_job", save_and_fill)
        job(data, out).complete()
    assert job(data, out).complete() == []
    assert len(rows(out)) == 4500


def test_an_empty_input_gives_an_empty_output(data: Path, out: Path) -> None:
    data.write_text("\n\n")
    assert job(data, out).complete() == []
    assert out.read_bytes() == b""


def test_wrong_paths_are_refused_before_anything_is_written(data: Path, out: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, Path, type[Exception], str]] = [
        (tmp_path / "none.jsonl", out, DataError, "does not exist"),
        (tmp_path, out, DataError, "is not a file or a pipe"),
        (data, tmp_path, SettingsError, "is not a regular file"),
        (data, data, SettingsError, "is the input itself"),
    ]
    for data_path, out_path, kind, message in cases:
        with pytest.raises(kind, match=message):
            job(data_path, out_path).open()
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_the_folder_of_the_output_is_made(data: Path, tmp_path: Path) -> None:
    job(data, tmp_path / "new" / "folder" / "out.jsonl").complete()
    assert rows(tmp_path / "new" / "folder" / "out.jsonl") == expected()


def test_a_damaged_ledger_is_named(data: Path, out: Path) -> None:
    job(data, out).complete()
    (out.with_name("out.jsonl.job") / "ledger.sqlite").write_bytes(b"something else" * 999)
    with pytest.raises(JobError, match=r"ledger\.sqlite is damaged"):
        job(data, out).open()
    assert job(data, out, overwrite=True).complete() == list(range(10))


def test_half_a_surrogate_pair_in_an_error_is_written_as_json_writes_it(data: Path, out: Path) -> None:
    job(data, out).complete(lambda content: [{"error": "the server said \ud83d, ☃"}])
    assert out.read_bytes().splitlines()[0] == '{"error": "the server said \\ud83d, ☃"}'.encode()
    assert rows(out)[0] == {"error": "the server said \ud83d, ☃"}


def test_finishing_early_is_refused(data: Path, out: Path) -> None:
    with job(data, out).open() as first, pytest.raises(JobError, match=r"10 records .* have no result"):
        first.finish()


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """A limit on the size of files stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_a_clear_error_and_can_be_resumed(
    data: Path, out: Path, small_disk: Callable[[int], None]
) -> None:
    def much(content: bytes) -> list[dict[str, Any]]:
        time.sleep(0.03)  # each result is stored by itself
        return double(content) * 1000

    small_disk(600_000)  # what is empty fits, the results do not
    with pytest.raises(JobError, match=r"cannot write .*ledger\.sqlite.* Free some space"):
        job(data, out).complete(much)
    small_disk(resource.RLIM_INFINITY)
    left = job(data, out).complete(much)
    assert 0 < left[0] < 9
    assert rows(out) == expected(lambda content: double(content) * 1000)


def test_a_disk_that_fills_up_while_the_output_is_written_is_a_clear_error_and_can_be_resumed(
    data: Path, out: Path, small_disk: Callable[[int], None]
) -> None:
    job(data, out).interrupt(*range(10))
    with job(data, out).open() as first:
        small_disk(100)
        with pytest.raises(JobError, match=r"cannot write .*out\.jsonl.* Free some space"):
            first.finish()
        small_disk(resource.RLIM_INFINITY)
    assert not out.exists()
    assert job(data, out).complete() == []
    assert rows(out) == expected()


def test_kill_9_at_any_moment_and_again_ends_as_uninterrupted(tmp_path: Path) -> None:
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(f'{{"n": {n}}}\n' for n in range(60_000)))
    script = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from parallelmind.jobs.options import RunOptions
        from parallelmind.jobs.results import RecordResult
        from parallelmind.jobs.run import run_job
        from parallelmind.tasks.copy_task import CopyTask

        class Fill(CopyTask):
            def start(self, worker, alive):
                print("open", flush=True)
                return self

            def run(self, lines, write):
                for line in lines:
                    n = json.loads(line.content)["n"]
                    write(line, RecordResult.of([{"n": n, "fill": "x" * (n % 500)}] * (n % 3)))

        data, out = map(Path, sys.argv[1:])
        run_job(Fill(data, out), RunOptions())
        """
    )
    chance = random.Random(0)
    killed = []
    for until in [*(chance.uniform(0, 0.15) for _ in range(6)), None]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(data), str(out)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout
        process.stdout.readline()
        try:
            process.wait(timeout=until)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(out.exists())
        process.stdout.close()
    assert process.returncode == 0
    assert killed.count(False) >= 2
    assert rows(out) == [{"n": n, "fill": "x" * (n % 500)} for n in range(60_000) for _ in range(n % 3)]
