"""Which output a job writes, and from what it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError
from tests.disks import interrupted_at
from tests.jobs.doubling import double, expected, fails_on, job, rows


def test_other_settings_take_a_new_name_and_say_so(data: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(data, out, {"a": 1, "b": None, "c": "x"}).complete()
    other = job(data, out, {"a": 2, "b": 0.5, "c": "x"})
    assert other.complete(fails_on(1)) == list(range(10))
    assert other.out_path == out.with_name("out_2.jsonl")
    assert "a was 1, is now 2; b was not given, is now 0.5" in caplog.text
    assert "out_2.jsonl" in caplog.text
    assert "--overwrite" in caplog.text
    assert " c was" not in caplog.text
    assert rows(out) == expected()
    assert rows(other.out_path) == expected(fails_on(1))
    for settings, name in (
        ({"a": 2, "b": 0.5, "c": "x"}, "out_2.jsonl"),
        ({"a": 1, "b": None, "c": "x"}, "out.jsonl"),
        ({"a": 3}, "out_3.jsonl"),
    ):
        again = job(data, out, settings)
        assert again.complete() == ([] if "b" in settings else list(range(10)))
        assert again.out_path.name == name


def test_what_no_job_made_is_passed_over_when_a_name_is_looked_for(data: Path, out: Path) -> None:
    job(data, out).complete()
    out.with_name("out_2.jsonl").write_text("precious")
    other = job(data, out, {"a": 2})
    other.complete()
    assert other.out_path.name == "out_3.jsonl"
    assert out.with_name("out_2.jsonl").read_text() == "precious"


def test_a_new_name_is_found_while_the_other_job_runs(data: Path, out: Path) -> None:
    job(data, out).interrupt(0)
    with job(data, out).open():
        other = job(data, out, {"a": 2})
        assert other.complete() == list(range(10))
        assert other.out_path.name == "out_2.jsonl"


def test_edited_files_take_a_new_name_and_say_so(data: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(data, out, files={"model": "1"}).complete()
    assert job(data, out, files={"model": "1"}).complete() == []
    other = job(data, out, files={"model": "2"})
    assert other.complete() == list(range(10))
    assert other.out_path.name == "out_2.jsonl"
    assert "the files of model were edited" in caplog.text


def test_a_link_to_the_output_keeps_the_name_that_was_asked_for(data: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.jsonl"
    link.symlink_to(out)
    first = job(data, link)
    first.complete()
    assert first.out_path == link
    other = job(data, link, {"a": 2})
    other.complete()
    assert other.out_path == out.with_name("out_2.jsonl")


def test_another_input_takes_a_new_name(data: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(data, out).complete()
    data.with_name("other.jsonl").write_text(data.read_text().replace('"n": 9', '"n": 8'))
    other = job(data.with_name("other.jsonl"), out)
    assert other.complete() == list(range(10))
    assert other.out_path.name == "out_2.jsonl"
    assert "the input was another text of the same length" in caplog.text
    assert rows(out) == expected()


def test_a_longer_input_extends_the_job(data: Path, out: Path) -> None:
    job(data, out).complete(fails_on(3))
    text = data.read_text()
    data.write_text(text + '{"n": 10}\n{"n": 11}\n')
    assert job(data, out).complete() == [10, 11]
    assert rows(out) == expected(fails_on(3)) + double(b'{"n": 10}') + double(b'{"n": 11}')
    assert job(data, out).complete() == []
    assert job(data, out, retry_failed=True).complete() == [3]
    assert rows(out)[:15] == expected()


@pytest.mark.parametrize(("more", "to_do"), [("\n", []), ('\n{"n": 1}', [10]), (" ", [9]), (' \n{"n": 1}', [9, 10])])
def test_a_last_line_without_an_end_is_the_same_record_only_if_it_ends_there(
    data: Path, out: Path, more: str, to_do: list[int]
) -> None:
    data.write_text(data.read_text().rstrip("\n"))
    job(data, out).complete()
    data.write_text(data.read_text() + more)
    assert job(data, out).complete() == to_do
    assert not out.with_name("out_2.jsonl").exists()


@pytest.mark.parametrize("failing", [(), (1, 3)])
@pytest.mark.parametrize("finished", [False, True])
def test_a_larger_sample_extends_the_job(data: Path, out: Path, finished: bool, failing: tuple[int, ...]) -> None:
    """Also from a run that was interrupted, and interrupted itself."""
    work = fails_on(*failing)
    if finished:
        assert job(data, out, max_records=4).complete(work) == [0, 1, 2, 3]
    else:
        job(data, out, max_records=4).interrupt(*range(4), work=work)
    with job(data, out, max_records=8).open() as second:
        assert second.resumed == 4
    job(data, out, max_records=8).interrupt(4, work=work)
    if finished:
        assert rows(out) == [row for n in range(4) for row in work(b'{"n": %d}' % n)]
    assert job(data, out).complete(work) == [5, 6, 7, 8, 9]
    assert rows(out) == expected(work)
    with job(data, out, max_records=10).open() as same:
        assert same.completion
        assert same.completion.failed == len(failing)


@pytest.mark.parametrize("began", [{"max_records": 8}, {"max_records": 4, "retry_failed": True}])
def test_a_finished_output_is_kept_when_going_on_from_it_ended_before_the_first_result(
    data: Path, out: Path, began: dict[str, Any]
) -> None:
    job(data, out, max_records=4).complete(fails_on(1))
    before = rows(out)
    with job(data, out, **began).open():
        pass
    other = job(data, out, {"a": 2})
    assert other.complete() == list(range(10))
    assert other.out_path.name == "out_2.jsonl"
    assert rows(out) == before


def test_a_smaller_sample_takes_a_new_name_unless_a_larger_one_will_do(data: Path, out: Path) -> None:
    job(data, out).complete()
    smaller = job(data, out, max_records=3)
    assert smaller.complete() == [0, 1, 2]
    assert smaller.out_path.name == "out_2.jsonl"
    enough = job(data, out, max_records=5, keep_larger=True)
    assert enough.complete() == []
    assert enough.out_path == out
    assert enough.report
    assert enough.report.input.records == 10


def test_an_output_that_was_edited_is_not_gone_on_from(data: Path, out: Path) -> None:
    """Only an output that is what it was, byte for byte, is taken over when the job goes on."""
    job(data, out, max_records=4).complete()
    with job(data, out).open() as longer:
        assert longer.resumed == 4
    out.write_text(out.read_text().replace('"twice": 2', '"twice": 7'))
    with pytest.raises(JobError, match="was edited after its job was complete"):
        job(data, out).open()
    assert job(data, out, overwrite=True).complete() == list(range(10))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_while_a_longer_output_takes_the_place_of_the_old_one_loses_nothing(
    data: Path, out: Path, replaced: bool
) -> None:
    job(data, out, max_records=4).complete(fails_on(2))
    with interrupted_at(out, replaced=replaced):
        job(data, out).complete()
    assert job(data, out).complete() == []
    assert rows(out) == expected(fails_on(2))
    assert job(data, out, retry_failed=True).complete() == [2]
    assert rows(out) == expected()
