"""A file for each worker beside the output: together they are the output, whatever happened in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import JobError, SettingsError
from parallelmind.jobs.run import JobReport
from parallelmind.jobs.worker_files import worker_files
from tests.disks import interrupted_at
from tests.tasks.answering import answer, context_row, read_rows, write_rows

BACKEND = """
import os, signal, time
from pathlib import Path
from parallelmind import QueryBasedInference

class Both(QueryBasedInference):
    \"\"\"Waits with its first answer until two workers have one.\"\"\"

    def setup(self):
        self.seen = Path(__file__).with_name("seen")
        self.seen.mkdir(exist_ok=True)
        self.begun = False

    def generate_answer(self, query, context, retrieval_method):
        if "dies" in query:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fails" in query and not Path(__file__).with_name("mended").exists():
            raise ValueError("it failed")
        until = time.monotonic() + 60
        (self.seen / str(os.getpid())).touch()
        while not self.begun and len(list(self.seen.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        self.begun = True
        return query.upper()
"""


@pytest.fixture
def backend(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "both.py").write_text(BACKEND)
    return {"backend": f"{tmp_path / 'both.py'}:Both", "model_path": None}


def questions(tmp_path: Path, *texts: str) -> Path:
    return write_rows(tmp_path / "in.jsonl", [context_row(n, text, "c") for n, text in enumerate(texts)])


def check(out: Path, report: JobReport) -> None:
    """Each file has the rows of its rank in the order of the output, as many as the worker's statistics say."""
    rows, files = read_rows(out), worker_files(out)
    counted = {rank: worker.processed for rank, worker in report.statistics.workers.items()}
    assert {rank: len(read_rows(path)) for rank, path in files.items()} == counted
    for rank, path in files.items():
        assert path == out.with_name(f"{out.stem}_rank{rank}.jsonl")
        assert read_rows(path) == [row for row in rows if row["worker_rank"] == rank]
    names = {path.name for path in out.parent.glob(f"{out.stem}_rank*")}
    assert names == {path.name for path in files.values()}


def test_two_workers_and_a_retry(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20)), "fails"), tmp_path / "out.jsonl"
    report = answer(data, out, workers=2, **backend)
    check(out, report)
    assert list(worker_files(out)) == [0, 1]
    assert (report.completion.answered, report.completion.failed) == (20, 1)
    (tmp_path / "mended").touch()
    again = answer(data, out, workers=2, **backend)
    check(out, again)
    assert again.completion.failed == 0
    assert read_rows(out)[20]["answer"] == "FAILS"


def test_one_worker_needs_no_second_file(tmp_path: Path, backend: Any) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "other").touch()
    data, out = questions(tmp_path, "a", "b"), tmp_path / "out.jsonl"
    for workers in (0, 1):
        answer(data, out, workers=workers, overwrite=True, **backend)
        assert worker_files(out) == {}
        assert not list(tmp_path.glob("out_rank*"))


def test_files_of_workers_that_have_no_rows_any_more_go(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20))), tmp_path / "out.jsonl"
    answer(data, out, workers=2, **backend)
    assert len(worker_files(out)) == 2
    answer(data, out, workers=0, overwrite=True, **backend)
    assert worker_files(out) == {}
    assert not list(tmp_path.glob("out_rank*"))


def test_a_complete_job_leaves_them_and_makes_lost_ones_again(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20))), tmp_path / "out.jsonl"
    answer(data, out, workers=2, **backend)
    first = {rank: (path, path.read_bytes(), path.stat().st_mtime_ns) for rank, path in worker_files(out).items()}
    for workers in (0, 2):
        answer(data, out, workers=workers, **backend)
        assert {rank: (p, p.read_bytes(), p.stat().st_mtime_ns) for rank, p in worker_files(out).items()} == first
        lost = first[1][0]
        lost.unlink()
        answer(data, out, workers=workers, **backend)
        assert lost.read_bytes() == first[1][1]
        first = {rank: (path, path.read_bytes(), path.stat().st_mtime_ns) for rank, (path, _, _) in first.items()}


def test_a_kill_between_the_output_and_its_files(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20))), tmp_path / "out.jsonl"
    with interrupted_at(tmp_path / "out_rank1.jsonl"):
        answer(data, out, workers=2, **backend)
    answer(data, out, workers=2, **backend)
    ranks = {row["worker_rank"] for row in read_rows(out)}
    assert {rank: read_rows(path) for rank, path in worker_files(out).items()} == {
        rank: [row for row in read_rows(out) if row["worker_rank"] == rank] for rank in ranks
    }


def test_a_row_that_no_worker_survives_has_no_rank(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, "q0", "dies", *(f"q{n}" for n in range(2, 12))), tmp_path / "out.jsonl"
    report = answer(data, out, workers=2, **backend)
    check(out, report)
    assert read_rows(out)[1]["worker_rank"] is None
    workers = report.statistics.workers.values()
    assert sum(worker.processed for worker in workers) == 11
    assert report.statistics.processed == 12


def test_the_input_is_not_replaced(tmp_path: Path, backend: Any) -> None:
    data = questions(tmp_path, "q0", "q1").rename(tmp_path / "out_rank1.jsonl")
    content = data.read_bytes()
    with pytest.raises(SettingsError, match=r"the input .*out_rank1.jsonl is where worker 1 of .*out.jsonl writes"):
        answer(data, tmp_path / "out.jsonl", workers=2, overwrite=True, **backend)
    assert data.read_bytes() == content


def test_files_of_others_are_not_replaced(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20))), tmp_path / "out.jsonl"
    foreign = tmp_path / "out_rank1.jsonl"
    foreign.write_text("mine\n")
    with pytest.raises(JobError, match=r"out_rank1.jsonl exists and was not made by this job, whose worker 1 writes"):
        answer(data, out, workers=2, **backend)
    assert not out.exists()
    (tmp_path / "seen").mkdir(exist_ok=True)
    for name in ("one", "other"):
        (tmp_path / "seen" / name).touch()
    answer(data, out, workers=0, **backend)
    assert foreign.read_text() == "mine\n"
    shutil.rmtree(tmp_path / "seen")
    check(out, answer(data, out, workers=2, overwrite=True, **backend))


def test_the_state_names_the_output_it_belongs_to(tmp_path: Path, backend: Any) -> None:
    data, out = questions(tmp_path, *(f"q{n}" for n in range(20))), tmp_path / "out.jsonl"
    report = answer(data, out, workers=2, **backend)
    state = tmp_path / "out.jsonl.job" / "rank-files.json"
    stored = json.loads(state.read_text())
    assert stored["sizes"] == {str(rank): path.stat().st_size for rank, path in worker_files(out).items()}
    state.write_text(json.dumps(stored | {"output": [1, 1]}))
    worker_files(out)[0].write_text("other\n" * 9)
    answer(data, out, workers=2, **backend)
    check(out, report)
