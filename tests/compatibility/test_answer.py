"""`multi_worker_inference.py`: its flags, the rows it reads and writes, and what can answer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from parallelmind.cli.main import main
from parallelmind.io import endpoint
from parallelmind.models.identity import bundled_model_path
from tests import fake_openai
from tests.compatibility.command_lines import link_checkout, parsed, refusal, run_line
from tests.compatibility.contract import proves
from tests.fake_openai import KEY, FakeOpenAI
from tests.tasks.answering import NAMES, PLAIN, context_row, read_rows, story, write_rows

LINE = "python utils/RAGutils/queryResultByInfer/multi_worker_inference.py"
ASKED = [
    "id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies", "retrieval_method",
    "context", "context_length", "retrieval_time", "success",
]  # fmt: skip
QUESTION_ONLY = "default: {system: '', context: '', question: '{query}', answer: ''}\n"


def rows() -> list[dict[str, Any]]:
    """Four questions on one story, ids of both kinds, and a question whose context was not found."""
    found = [context_row(n if n % 2 else f"item {n}", f"How old is {name}?", story(0)) for n, name in enumerate(NAMES)]
    lost = context_row("lost", "q", "", success=False, error="numpy 9.9 has no documentation here")
    return [context_row(0, "How old is Dan?", story(0)), *found, lost]


def answer(data: Path, out: Path, *flags: object) -> int:
    given = ["answer", "--contexts_file", data, "--output_file", out, "--workers", 0, *flags]
    return main([str(word) for word in given])


@proves(
    "answer", "--contexts_file", "--output_file", "--inference_type", "--max_new_tokens", "--temperature", "--top_p"
)
@proves("answer", "--max_samples_per_worker", "--verbose")
def test_what_is_required_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Two files are required; the parser has the documented defaults."""
    files = {"--contexts_file": "c", "--output_file": "o"}
    for lacking in files:
        assert lacking in refusal("answer", files, lacking, capsys)
    chosen = parsed("answer", *(word for pair in files.items() for word in pair))
    assert (chosen["max_new_tokens"], chosen["temperature"], chosen["top_p"]) == (512, 0.2, 0.95)
    assert (chosen["inference_type"], chosen["max_samples_per_worker"], chosen["verbose"]) == ("local", None, False)


class Told:
    """A run on the bundled model and what it told."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> None:
        template = folder / "plain.yaml"
        template.write_text(PLAIN)
        data, self.out = write_rows(folder / "contexts.jsonl", rows()), folder / "answers.jsonl"
        flags = (*flags, "--prompt_template", template, "--model_path", "tiny", "--dtype", "float32")
        assert answer(data, self.out, "--temperature", 0, "--log_interval", 0, *flags) == 0
        self.printed, self.log = capsys.readouterr()
        self.rows = read_rows(self.out)


@proves("answer", "--contexts_file", "--output_file", "--model_path", "--max_new_tokens", "ids", "live progress")
@proves("answer", '"success": false in a context row', "Worker N INFERENCE STATISTICS")
@proves(
    "answer",
    '{"id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies", '
    '"retrieval_method", "context", "context_length", "retrieval_time", "success"}',
    '{…, "answer", "inference_time", "total_time", "worker_rank", "success"}',
)
@proves("backends", "--inference_type local")
def test_rows_and_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six context rows on the bundled model: every field as documented, in order, then the statistics."""
    told = Told(tmp_path, capsys, "--inference_type", "local", "--max_new_tokens", 2)
    given = rows()
    assert all(list(row)[: len(ASKED)] == ASKED for row in given)
    assert [row["id"] for row in told.rows] == [0, "item 0", 1, "item 2", 3, "lost"]
    for asked, row in zip(given, told.rows, strict=True):
        kept = [name for name in ASKED if name not in ("context", "success")]
        assert list(row)[:-1][: len(kept)] == kept
        assert {name: row[name] for name in kept} == {name: asked[name] for name in kept}
        assert "context" not in row
        assert row["total_time"] == row["retrieval_time"] + row["inference_time"]
        assert row["worker_rank"] == 0
    assert [row["answer"] for row in told.rows[:5]] == [" 2"] * 5  # two tokens: the space and a digit
    assert [row["tokens_out"] for row in told.rows[:5]] == [2] * 5
    assert all(row["inference_time"] > 0 for row in told.rows[:5])
    lost = told.rows[5]
    assert (lost["success"], lost["answer"], lost["inference_time"]) == (False, None, 0)
    assert lost["error"] == "numpy 9.9 has no documentation here"
    block = re.search(r"Worker 0 INFERENCE STATISTICS\n=+\n((?:.+:.*\n)+)", told.printed)
    assert block
    lines = dict(re.split(r":\s+", line, maxsplit=1) for line in block[1].splitlines())
    assert float(lines.pop("Average inference time").removesuffix("s")) > 0
    assert lines == {
        "Total contexts processed": "6",
        "Successful inferences": "5",
        "Errors": "1",
        "Success rate": "83.3%",
        "Results saved to": str(told.out),
    }
    assert told.printed.index("Worker 0") < told.printed.index("TOTAL INFERENCE STATISTICS (1 workers)")
    assert re.search(r"\d of 6 records", told.log)


@proves("answer", "--verbose", "--max_samples_per_worker", "--max_new_tokens")
def test_fewer_rows_and_more_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three rows of the file, whole answers by the default length, and with `--verbose` a log that says more."""
    told = Told(tmp_path, capsys, "--max_samples_per_worker", 3, "--verbose")
    assert [row["answer"].strip() for row in told.rows] == ["20", "20", "21"]
    assert " DEBUG " in told.log
    (tmp_path / "quiet").mkdir()
    assert " DEBUG " not in Told(tmp_path / "quiet", capsys).log


@proves("answer", "--temperature", "--top_p")
def test_sampling_on_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A high temperature changes the answers of the bundled model, unless the smallest nucleus leaves one token."""
    answers = []
    for flags in ((), ("--temperature", 8, "--top_p", 1), ("--temperature", 8, "--top_p", 0.001)):
        folder = tmp_path / str(len(answers))
        folder.mkdir()
        answers.append([row["answer"] for row in Told(folder, capsys, "--max_new_tokens", 4, *flags).rows])
    assert answers[0] == answers[2] != answers[1]


def over_http(folder: Path, *flags: object) -> int:
    """Three questions to a server, whose prompts are the questions alone."""
    template = folder / "question.yaml"
    template.write_text(QUESTION_ONLY)
    data = write_rows(folder / "in.jsonl", [context_row(n, f"q{n}", "c") for n in range(3)])
    return answer(data, folder / "out.jsonl", "--prompt_template", template, "--model_path", "m", *flags)


@proves("answer", "--max_new_tokens", "--temperature", "--top_p", "--inference_type", "--model_path")
@proves("backends", "--inference_type openai --base_url")
def test_a_server(tmp_path: Path) -> None:
    """Any address of OpenAI's protocol gets the model's name and the sampling: the defaults, or what flags say."""
    common = ("--inference_type", "openai")
    for number, (flags, sent) in enumerate((
        ((), (512, 0.2, 0.95)),
        (("--max_new_tokens", 7, "--temperature", 0.5, "--top_p", 0.6), (7, 0.5, 0.6)),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        with FakeOpenAI() as server:
            assert over_http(folder, *common, "--base_url", server.base_url, *flags) == 0
            bodies = [request.body for request in server.requests]
            assert {request.path for request in server.requests} == {"/v1/chat/completions"}
        names = ("max_tokens", "temperature", "top_p")
        found = [tuple(body.get(name, body.get("max_completion_tokens")) for name in names) for body in bodies]
        assert found == [sent] * 3
        assert {body["model"] for body in bodies} == {"m"}
        assert [row["answer"] for row in read_rows(folder / "out.jsonl")] == [f"answer to q{n}" for n in range(3)]


@proves("answer", 'a failed answer: "success": false, "error"')
def test_failed_answers_are_tried_again(tmp_path: Path) -> None:
    """What the server refused has an error and no answer; the next run asks that alone, and the output is whole."""
    with FakeOpenAI({"q1": [fake_openai.error(400, "too long")]}) as server:
        flags = ("--inference_type", "openai", "--base_url", server.base_url)
        assert over_http(tmp_path, *flags) == 0
        before = read_rows(tmp_path / "out.jsonl")
        assert [row["success"] for row in before] == [True, False, True]
        assert before[1]["answer"] is None
        assert "too long" in before[1]["error"]
        server.requests.clear()
        assert over_http(tmp_path, *flags) == 0
        assert [request.question for request in server.requests] == ["q1"]
    after = read_rows(tmp_path / "out.jsonl")
    assert after[1]["answer"] == "answer to q1"
    assert "error" not in after[1]
    assert [after[0], after[2]] == [before[0], before[2]]


@proves("answer", "--inference_type")
@proves("backends", "--inference_type togetherai")
def test_together_ai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions go to Together AI's address (a local one in its place here) with the key; without a key, to nobody."""
    assert endpoint.find_endpoint("togetherai", environ={"TOGETHER_API_KEY": "k"}).base_url == (
        "https://api.together.xyz/v1"
    )
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    assert over_http(tmp_path, "--inference_type", "togetherai") == 1
    assert "the environment variable TOGETHER_API_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    with FakeOpenAI() as server:
        monkeypatch.setitem(endpoint._SERVICES, "togetherai", (server.base_url, "TOGETHER_API_KEY"))
        assert over_http(tmp_path, "--inference_type", "togetherai") == 0
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert [row["answer"] for row in read_rows(tmp_path / "out.jsonl")] == [f"answer to q{n}" for n in range(3)]


@proves("answer", "streaming")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Of 300 rows a backend of the user's own sees a handful alive at a time, at the end as at the beginning."""
    code = tmp_path / "counting.py"
    code.write_text("""
import gc
from parallelmind import QueryBasedInference

class Counting(QueryBasedInference):
    def generate_answer(self, query, context, retrieval_method):
        if not query.endswith("99"):
            return ""
        return str(sum(type(thing).__name__ == "ContextRow" for thing in gc.get_objects()))
""")
    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", f"c{n}") for n in range(300)])
    assert answer(data, tmp_path / "out.jsonl", "--backend", f"{code}:Counting") == 0
    alive = [int(row["answer"]) for row in read_rows(tmp_path / "out.jsonl") if row["answer"]]
    assert len(alive) == 3
    assert 1 <= min(alive) <= max(alive) <= 5


@proves("answer", LINE, "--inference_type")
@proves("backends", "--inference_type huggingface")
def test_the_line_with_a_model_of_the_hub(tmp_path: Path) -> None:
    """The line with a hub name, the bundled model being in a hub cache under it: no network, the answers are right."""
    link_checkout(tmp_path)
    cached = tmp_path / "home" / "hub" / "models--acme--tiny"
    shutil.copytree(bundled_model_path(), cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    (tmp_path / "plain.yaml").write_text(PLAIN)
    write_rows(tmp_path / "contexts.jsonl", rows())
    flags = "--contexts_file contexts.jsonl --output_file answers.jsonl --inference_type huggingface --temperature 0"
    flags += " --model_path acme/tiny --prompt_template plain.yaml --dtype float32 --max_new_tokens 8"
    hub = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_OFFLINE": "1"}
    done = run_line(f"{LINE} {flags}", cwd=tmp_path, **hub)
    assert "Worker 0 INFERENCE STATISTICS" in done.stdout
    answers = [json.loads(line)["answer"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [text.strip() for text in answers[:5]] == ["20", "20", "21", "22", "23"]
    assert answers[5] is None
