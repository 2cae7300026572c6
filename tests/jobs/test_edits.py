"""Inputs that are edited between the runs of a job, and while it runs: the output is that of an undisturbed run on the
input as it is at the end, and only what changed is worked on again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.results import RecordResult, encode_rows
from parallelmind.jobs.run import run_job
from tests.disks import interrupted_at, room_for
from tests.jobs.doubling import Doubling, Rows, double, fails_on, job, rows
from tests.jobs.ledgers import ask


def write(path: Path, *numbers: int, lines: str = "\n") -> None:
    path.write_text("".join(f'{{"n": {n}}}{lines}' for n in numbers))


def of(*numbers: int, work: Callable[[bytes], Rows] = double) -> Rows:
    return [row for n in numbers for row in work(b'{"n": %d}' % n)]


TEN = range(10)
EDITS = {
    "edited": ([0, 1, 2, 33, 4, 5, 6, 7, 8, 9], [3]),
    "reordered": ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], []),
    "shortened at the end": ([0, 1, 2, 3, 4], []),
    "shortened at the beginning": ([5, 6, 7, 8, 9], []),
    "extended at the beginning": ([10, *TEN], [0]),
    "extended in the middle": ([0, 1, 2, 3, 4, 44, 5, 6, 7, 8, 9], [5]),
    "repeated": ([0, 0, *range(1, 10), 0], [1, 11]),
    "emptied": ([], []),
    "all other": ([20, 21], [0, 1]),
}


@pytest.mark.parametrize("kept", ["finished", "interrupted", "output removed"])
@pytest.mark.parametrize("edit", EDITS)
def test_only_what_an_edit_changed_is_done_again(data: Path, out: Path, edit: str, kept: str) -> None:
    numbers, changed = EDITS[edit]
    if kept == "interrupted":
        job(data, out).interrupt(*TEN)
    else:
        job(data, out).complete()
    if kept == "output removed":
        out.unlink()
        changed = list(range(len(numbers)))
    write(data, *numbers)
    again = job(data, out)
    assert again.complete() == changed
    assert again.out_path == out
    assert rows(out) == of(*numbers)
    assert job(data, out).complete() == []
    write(data, *TEN)
    job(data, out).complete()
    assert rows(out) == of(*TEN)


def test_any_edits_between_runs_that_are_killed(data: Path, out: Path) -> None:
    chance = random.Random(3)
    for _ in range(60):
        numbers = [chance.randrange(12) for _ in range(chance.randrange(14))]
        write(data, *numbers, lines=chance.choice(["\n", "\n", "\r\n", "\n\n"]))
        work = fails_on(*chance.sample(range(12), 2))
        options: dict[str, Any] = {"retry_failed": chance.random() < 0.3}
        if numbers and chance.random() < 0.6:
            done = chance.sample(range(len(numbers)), chance.randrange(1, len(numbers) + 1))
            with contextlib.suppress(AssertionError):  # it had nothing to do
                job(data, out, **options).interrupt(*done, work=work)
        else:
            job(data, out, **options).complete(double)
            job(data, out, retry_failed=True).complete(double)
            assert rows(out) == of(*numbers)
    assert not out.with_name("out_2.jsonl").exists()


def test_an_edit_that_is_taken_back_costs_nothing(data: Path, out: Path) -> None:
    job(data, out).interrupt(*range(8))
    write(data, 7, 8)
    job(data, out).interrupt(1)
    write(data, *TEN)
    assert job(data, out).complete() == [9]
    assert rows(out) == of(*TEN)
    assert ask(out, "SELECT count(*) FROM results WHERE record IS NULL") == [(0,)]


def test_a_result_that_names_its_line_is_made_again_where_the_line_moved(data: Path, out: Path) -> None:
    job(data, out).complete(fails_on(3, 5))
    write(data, 0, 1, 2, 3, 44, 4, 5)
    assert job(data, out).complete(fails_on(5)) == [4, 6]
    assert rows(out) == [*of(0, 1, 2), *of(3, work=fails_on(3)), *of(44, 4), *of(5, work=fails_on(5))]


@dataclasses.dataclass
class Numbered(Doubling):
    """Its rows have the numbers of their lines."""

    can_move: bool = True

    def run(self, lines: Any, write: Any) -> None:
        for line in lines:
            self.done.append(line.index)
            write(line, RecordResult.of([{"n": json.loads(line.content)["n"], "line": line.number, "é": "\ud83d"}]))

    def moved(self, rows: bytes, line: int) -> bytes | None:  # type: ignore[override]
        return encode_rows([json.loads(row) | {"line": line} for row in rows.splitlines()]) if self.can_move else None


@pytest.mark.parametrize("can_move", [True, False])
def test_rows_with_the_number_of_their_line_get_the_new_one(data: Path, out: Path, can_move: bool) -> None:
    task = Numbered(data, out, can_move=can_move)
    run_job(task, RunOptions())
    data.write_text('{"n": 0}\n\n{"n": 44}\n' + "".join(f'{{"n": {n}}}\n' for n in range(1, 10)))
    task.done.clear()
    run_job(task, RunOptions())
    assert task.done == ([1] if can_move else list(range(1, 11)))
    edited = out.read_bytes()
    run_job(Numbered(data, fresh := out.with_name("fresh.jsonl")), RunOptions())
    assert edited == fresh.read_bytes()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_while_the_output_of_an_edited_input_takes_its_place_loses_nothing(
    data: Path, out: Path, replaced: bool
) -> None:
    job(data, out).complete()
    write(data, 9, 20, 1)
    with interrupted_at(out, replaced=replaced):
        job(data, out).complete()
    assert job(data, out).complete() == []
    assert rows(out) == of(9, 20, 1)
    write(data, *TEN)
    job(data, out).complete()
    assert rows(out) == of(*TEN)


@pytest.mark.parametrize("left", [(), (2, 3)])
def test_an_edit_after_such_a_kill_finds_the_results_of_records_that_had_gone(
    data: Path, out: Path, left: tuple[int, ...]
) -> None:
    if left:
        job(data, out).interrupt(*left)
    else:
        job(data, out).complete()
    write(data, 9, 20, 1)
    with interrupted_at(out, replaced=True):
        job(data, out).complete()
    write(data, 2, 9, 20, 3)
    assert job(data, out).complete() == []
    assert rows(out) == of(2, 9, 20, 3)


def test_a_disk_that_is_full_while_results_are_carried_over_is_no_damage(data: Path, out: Path) -> None:
    numbers = list(range(3000))
    write(data, *numbers)
    job(data, out).complete()
    write(data, *reversed(numbers))
    with room_for(2**18), pytest.raises(JobError, match=r"ledger\.sqlite.*start the same command again"):
        job(data, out).complete()
    assert job(data, out).complete() == []
    assert rows(out) == of(*reversed(numbers))


def test_a_record_that_is_quarantined_is_known_by_its_content(data: Path, out: Path) -> None:
    job(data, out).interrupt(0)
    with job(data, out).open() as opened:
        from parallelmind.jobs.quarantine import Suspicion

        for record in (4, 5):
            opened.ledger.save_suspicion(record, opened.input.keys[record].tobytes(), Suspicion(alone=1))
        opened.ledger.commit()
    write(data, 5, 1, 2, 3)
    with job(data, out).open() as opened:
        assert opened.ledger.quarantine() == {0: Suspicion(alone=1)}


# While the job runs.


def edits(data: Path, at: int, *numbers: int, then: tuple[int, ...] | None = None) -> Callable[[bytes], Rows]:
    """Work that edits the input as it comes to a number; with `then`, and once more as it comes to the next one."""
    waiting = [(at, numbers)] + ([(at + 1, then)] if then else [])

    def work(content: bytes) -> Rows:
        if waiting and content == b'{"n": %d}' % waiting[0][0]:
            before = data.stat()
            write(data, *waiting.pop(0)[1])
            if data.stat().st_size == before.st_size:  # as an editor may that keeps the time
                os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
        return double(content)

    return work


@pytest.mark.parametrize("at", [0, 4, 9])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_while_the_job_runs_is_taken_up(data: Path, out: Path, edit: str, at: int) -> None:
    numbers, _ = EDITS[edit]
    done = job(data, out).complete(edits(data, at, *numbers))
    assert rows(out) == of(*numbers)
    assert len(done) <= 10 + len(numbers)
    assert not out.with_name("out_2.jsonl").exists()
    assert job(data, out).complete() == []


def test_an_input_edited_and_restored_has_no_answer_of_the_edit(data: Path, out: Path) -> None:
    """What was read of the edited file is noticed though it is the same in size and time as before, and at the end."""
    done = job(data, out).complete(edits(data, 0, *range(10, 20), then=tuple(TEN)))
    assert rows(out) == of(*TEN)
    assert sorted(set(done)) == list(TEN)


@dataclasses.dataclass
class EditedAtOnce(Doubling):
    """Its input is edited as it works on the first record, so that all others are at another byte, in the same line."""

    def run(self, lines: Any, write: Any) -> None:
        for line in lines:
            if not self.done:
                content = self.input_path.read_bytes()
                replacement = self.input_path.with_suffix(".new")
                replacement.write_bytes(content.replace(b'{"n": 0', b'{"n":   0'))
                self.input_path.write_bytes(replacement.read_bytes())
            self.done.append(line.index)
            write(line, RecordResult.of(self.work(line.content)))


def write_large(data: Path, numbers: range) -> None:
    """Each record larger than what is read ahead."""
    data.write_text("".join(f'{{"n": {n}, "text": "{"x" * 2**20}"}}\n' for n in numbers))


def test_an_edit_while_failed_records_are_tried_again_leaves_none_of_them_out(data: Path, out: Path) -> None:
    write_large(data, range(8))
    job(data, out).complete(fails_on(3, 5, 7))
    again = EditedAtOnce(data, out)
    run_job(again, RunOptions(retry_failed=True))
    assert rows(out) == of(*range(8))
    assert sorted(again.done) == [0, 3, 5, 7]


def test_an_edit_while_a_larger_sample_is_finished_leaves_it_as_large(data: Path, out: Path) -> None:
    job(data, out, max_records=8).interrupt(0, 1)
    run_job(EditedAtOnce(data, out, max_records=4), RunOptions(keep_larger=True))
    assert rows(out) == of(*range(8))


def test_a_touched_input_is_not_an_edited_one(data: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    def touches(content: bytes) -> Rows:
        os.utime(data)
        return double(content)

    assert job(data, out).complete(touches) == list(TEN)
    assert "was edited" not in caplog.text


def test_an_input_that_grows_without_end_is_told(data: Path, out: Path) -> None:
    count = 10

    def grows(content: bytes) -> Rows:
        nonlocal count
        with data.open("a") as file:
            file.write(f'{{"n": {count}}}\n')
        count += 1
        return double(content)

    with pytest.raises(JobError, match=r"edited 20 times while the job ran; when it is at rest, start the"):
        job(data, out).complete(grows)
    job(data, out).complete()
    assert rows(out) == of(*range(count))


def test_an_input_that_is_removed_while_the_job_runs_is_told_and_nothing_is_lost(data: Path, out: Path) -> None:
    def removes(content: bytes) -> Rows:
        data.unlink(missing_ok=True)
        return double(content)

    with pytest.raises(Exception, match=r"the input .*in\.jsonl does not exist"):
        job(data, out).complete(removes)
    write(data, *TEN)
    assert job(data, out).complete() == []
    assert rows(out) == of(*TEN)
