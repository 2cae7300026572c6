"""The answer stage over HTTP and through a user's class: whatever the server does, the accounting holds."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallelmind.errors import JobError, SettingsError
from tests import fake_openai
from tests.fake_openai import KEY, FakeOpenAI, Received, Reply
from tests.tasks.answering import answer, context_row, everything_written, read_rows, write_rows

BACKEND = """
import os
from parallelmind import QueryBasedInference

class Mine(QueryBasedInference):
    def setup(self):
        self.prefix = f"{self.settings.model_path} {self.settings.temperature}"

    def generate_answer(self, query, context, retrieval_method):
        if "fails" in query:
            raise ValueError("this one fails")
        return f"{self.prefix}: {query} / {context} / {retrieval_method}"
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "job" / "answers.jsonl"


@pytest.fixture
def over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options; with this template the question is all the server gets."""
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "job").mkdir()
    template = tmp_path / "question.yaml"
    template.write_text("default: {system: '', context: '', question: '{query}', answer: ''}\n")
    return {"inference_type": "openai", "api_key_env": "MY_KEY", "prompt_template": template, "model_path": "m"}


def questions(tmp_path: Path, count: int) -> Path:
    return write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", "c") for n in range(count)])


def asked(server: FakeOpenAI) -> list[str]:
    return [request.question for request in server.requests]


def test_a_misbehaving_server(tmp_path: Path, out: Path, over_http: Any) -> None:
    bad = {
        "q0": [fake_openai.too_many_requests(0.01), fake_openai.too_many_requests(0.01)],
        "q1": [fake_openai.error(500), fake_openai.error(503)],
        "q2": [fake_openai.broken_json()],
        "q3": [fake_openai.empty_choices()],
        "q4": [fake_openai.dropped()],
        "q5": [fake_openai.hung_up()],
        "q6": [fake_openai.silent()],
        "q7": [fake_openai.trickle()],
        "q8": [fake_openai.null_content()],
        "q9": [fake_openai.error(400, "too long")],
    }
    with FakeOpenAI(bad) as server:
        report = answer(
            questions(tmp_path, 30), out, base_url=server.base_url, timeout=3.0, max_attempts=4, **over_http
        )
    rows = read_rows(out)
    assert [row["id"] for row in rows] == list(range(30))
    assert [row["id"] for row in rows if not row["success"]] == [9]
    assert [row["answer"] for row in rows] == [f"answer to q{n}" if n != 9 else None for n in range(30)]
    assert "too long" in rows[9]["error"]
    assert [row.get("retries", 0) for row in rows] == [2, 2, *[1] * 7, *[0] * 21]
    assert (report.completion.answered, report.completion.failed) == (29, 1)
    assert report.statistics.retries == 11
    assert report.statistics.errors_by_class == {"http_400": 1}
    assert (report.statistics.tokens_in, report.statistics.tokens_out) == (29 * 7, 29 * 3)
    assert len(server.requests) == 30 + 11
    for row in rows:
        assert "context" not in row
        assert row["total_time"] == row["retrieval_time"] + row["inference_time"]


def test_half_a_surrogate_pair_in_what_the_server_says_costs_one_row(tmp_path: Path, out: Path, over_http: Any) -> None:
    with FakeOpenAI({"q1": [fake_openai.error(400, "bad \ud83d text")]}) as server:
        answer(questions(tmp_path, 3), out, base_url=server.base_url, **over_http)
    rows = read_rows(out)
    assert [row["success"] for row in rows] == [True, False, True]
    assert "bad \ud83d text" in rows[1]["error"]


def test_what_failed_is_asked_again_and_nothing_else(tmp_path: Path, out: Path, over_http: Any) -> None:
    data = questions(tmp_path, 12)
    down = [fake_openai.error(500, "down")] * 2
    with FakeOpenAI({"q3": down, "q8": down}) as server:
        answer(data, out, base_url=server.base_url, max_attempts=2, **over_http)
        failed = read_rows(out)
        assert [row["id"] for row in failed if not row["success"]] == [3, 8]
        assert all(row["answer"] is None and "down" in row["error"] for row in failed if not row["success"])
        server.requests.clear()
        report = answer(data, out, base_url=server.base_url, max_attempts=2, **over_http)
        assert sorted(asked(server)) == ["q3", "q8"]
        assert [row["answer"] for row in read_rows(out)] == [f"answer to q{n}" for n in range(12)]
        assert (report.resumed, report.completion.failed) == (10, 0)
        server.requests.clear()
        answer(data, out, base_url=server.base_url, max_attempts=2, **over_http)
        assert asked(server) == []


@pytest.mark.parametrize(("workers", "error"), [(0, SettingsError), (1, JobError)])
def test_a_refused_key_stops_the_job_which_goes_on_later(
    tmp_path: Path, out: Path, over_http: Any, workers: int, error: type[Exception]
) -> None:
    data = questions(tmp_path, 10)
    with FakeOpenAI({"q6": [fake_openai.error(401, "key expired")]}) as server:
        told = r"answered 401: key expired Check the key in MY_KEY\.( 4 records have no result)?"
        with pytest.raises(error, match=told):
            answer(data, out, base_url=server.base_url, concurrency=1, workers=workers, **over_http)
        assert not out.exists()
        server.requests.clear()
        answer(data, out, base_url=server.base_url, concurrency=1, **over_http)
        assert sorted(asked(server)) == ["q6", "q7", "q8", "q9"]
    assert [row["answer"] for row in read_rows(out)] == [f"answer to q{n}" for n in range(10)]


def test_a_missing_key_is_told_before_anything_is_written(
    tmp_path: Path, out: Path, over_http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(SettingsError, match="the environment variable MY_KEY is not set"):
        answer(questions(tmp_path, 1), out, base_url="http://127.0.0.1:9/v1", **over_http)
    assert list(out.parent.iterdir()) == []


def test_the_key_is_written_nowhere(
    tmp_path: Path, out: Path, over_http: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    echoes = {"q0": [fake_openai.echoed_key(500)] * 2, "q1": [fake_openai.echoed_key_as_answer()]}
    with caplog.at_level(logging.DEBUG), FakeOpenAI(echoes) as server:
        data = questions(tmp_path, 4)
        report = answer(data, out, base_url=server.base_url, max_attempts=2, **over_http)
        assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    assert (report.completion.answered, report.completion.failed) == (3, 1)
    assert {path.name for path in (out.parent / "answers.jsonl.job").iterdir()} >= {"ledger.sqlite", "stats.json"}
    written = everything_written(out.parent)
    assert b"you sent" in written
    assert KEY.encode() not in written
    assert KEY not in caplog.text
    assert KEY not in "".join(capfd.readouterr())
    assert KEY not in str(report)


class Killing(FakeOpenAI):
    """Kills a worker process of this one when a question of `deadly` comes for the first time."""

    def __init__(self, deadly: set[str]) -> None:
        super().__init__()
        self.deadly = deadly

    def take(self, received: Received) -> Reply:
        if received.question in self.deadly and kill_a_worker():
            self.deadly.discard(received.question)
        return super().take(received)


def kill_a_worker() -> bool:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it is dead already
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                return True
    return False


def test_killed_workers_lose_no_row_and_double_none(tmp_path: Path, out: Path, over_http: Any) -> None:
    with Killing({"q3", "q27"}) as server:
        data = questions(tmp_path, 60)
        report = answer(data, out, base_url=server.base_url, concurrency=4, workers=2, **over_http)
        assert not server.deadly
    rows = read_rows(out)
    assert [(row["id"], row["answer"]) for row in rows] == [(n, f"answer to q{n}") for n in range(60)]
    assert {row["worker_rank"] for row in rows} <= {0, 1}
    assert sum(worker.processed for worker in report.statistics.workers.values()) == 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_of_the_user(tmp_path: Path, out: Path, workers: int) -> None:
    code = tmp_path / "mine.py"
    code.write_text(BACKEND)
    rows = [context_row(n, "fails" if n == 4 else f"问{n}", "c") for n in range(8)]
    data = write_rows(tmp_path / "in.jsonl", [*rows, "{broken"])
    out.parent.mkdir()
    backend = {"backend": f"{code}:Mine", "model_path": "lookup", "workers": workers}
    report = answer(data, out, **backend)
    found = read_rows(out)
    assert [row["answer"] for row in found] == [
        *(f"lookup 0.2: 问{n} / c / exact_api_match" if n != 4 else None for n in range(8)), None
    ]  # fmt: skip
    assert (found[4]["error"], found[4]["success"]) == ("this one fails", False)
    assert report.statistics.errors_by_class == {"DataError": 1, "ValueError": 1}
    code.write_text(BACKEND.replace("this one", "that one"))
    edited = answer(data, out, **backend)
    assert edited.out_path == out.with_name(f"{out.stem}_2{out.suffix}")
    assert len(read_rows(edited.out_path)) == len(found)
    assert read_rows(out) == found


def test_a_password_in_the_address_is_in_no_file_of_the_job(
    tmp_path: Path, out: Path, over_http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeOpenAI({"q1": [fake_openai.echoed_key(400)]}) as server:
        address = server.base_url.replace("://", "://anna:correct-horse@")
        answer(questions(tmp_path, 3), out, base_url=address, **over_http)
        assert answer(questions(tmp_path, 3), out, base_url=server.base_url, **over_http).resumed >= 2
    assert b"correct-horse" not in everything_written(out) + caplog.text.encode()
