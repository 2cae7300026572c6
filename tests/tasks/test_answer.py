"""The answer stage on the engine: grouped equals one by one, every row once, failures tried again."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parallelmind.answering.context_rows import ContextRow
from parallelmind.answering.window import ContextWindow
from parallelmind.errors import DataError, SettingsError
from parallelmind.jobs.options import RunOptions
from parallelmind.jobs.run import JobReport, run_job
from parallelmind.retrieval.budget import TokenBudget
from parallelmind.retrieval.context_text import SEPARATOR
from parallelmind.tasks.answer import AnswerTask
from parallelmind.tasks.answer_options import AnswerOptions
from parallelmind.tasks.answer_workers import EngineAnswers
from tests.fake_engine import FakeEngine, encode
from tests.tasks.answering import NAMES, PLAIN, answer, context_row, read_rows, story_rows, write_rows

ASKED = ["id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies"]
ASKED += ["retrieval_method", "context_length", "retrieval_time"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "contexts.jsonl", story_rows())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def on_tiny(tmp_path: Path) -> dict[str, Any]:
    template = tmp_path / "plain.yaml"
    template.write_text(PLAIN)
    return {"prompt_template": template, "device": "cpu", "dtype": "float32", "max_new_tokens": 8}


class TestOnTheBundledModel:
    def test_the_answers_are_right_and_the_rows_as_documented(self, data: Path, out: Path, on_tiny: Any) -> None:
        report = answer(data, out, temperature=0.0, **on_tiny)
        given, rows = story_rows(), read_rows(out)
        assert [row["answer"].strip() for row in rows] == [
            str(20 + 7 * number + place) for place in range(len(NAMES)) for number in range(4)
        ]
        for asked, row in zip(given, rows, strict=True):
            assert "context" not in row
            assert {name: row[name] for name in ASKED} == {name: asked[name] for name in ASKED}
            assert row["total_time"] == row["retrieval_time"] + row["inference_time"]
            assert row["inference_time"] > 0
            assert (row["worker_rank"], row["success"], "error" in row) == (0, True, False)
        assert (report.completion.answered, report.completion.failed) == (16, 0)
        assert report.statistics.tokens_out == sum(row["tokens_out"] for row in rows)

    @pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
    def test_grouped_is_one_by_one(
        self, data: Path, out: Path, on_tiny: Any, tmp_path: Path, temperature: float
    ) -> None:
        one_by_one = tmp_path / "one.jsonl"
        answer(data, out, temperature=temperature, top_p=1.0, **on_tiny)
        answer(data, one_by_one, temperature=temperature, top_p=1.0, batch_size=1, **on_tiny)
        assert [row["answer"] for row in read_rows(out)] == [row["answer"] for row in read_rows(one_by_one)]

    def test_sampled_answers_depend_on_the_seed(self, data: Path, out: Path, on_tiny: Any, tmp_path: Path) -> None:
        hot = on_tiny | {"temperature": 3.0, "top_p": 1.0}
        answers = []
        for number, seed in enumerate([0, 0, 1]):
            path = tmp_path / f"seed-{number}.jsonl"
            answer(data, path, seed=seed, **hot)
            answers.append([row["answer"] for row in read_rows(path)])
        assert answers[0] == answers[1] != answers[2]


class CharacterTokenizer:
    """As the fake engine counts: one token a character."""

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        places = [(n, n + 1) for n in range(len(text))]
        return SimpleNamespace(ids=encode(text), offsets=places)


class Recorded(AnswerTask):
    """The answer stage with a fake engine in place of a model."""

    def __init__(self, data: Path, out: Path, fake: FakeEngine, **options: Any) -> None:
        given = {"model_path": "fake", "max_new_tokens": 100} | options
        super().__init__(AnswerOptions(contexts_file=data, output_file=out, **given))
        self.fake = fake

    def start(self, worker: Any, alive: Callable[[], None]) -> EngineAnswers:
        def encode_row(row: ContextRow) -> tuple[list[int], list[int]]:
            if "untemplatable" in row.query:
                raise DataError("no template takes this; ask something else.")
            if "breaks the tokenizer" in row.query:
                raise RuntimeError("it broke")
            return encode(row.context), encode(row.query)

        budget = TokenBudget(CharacterTokenizer())  # type: ignore[arg-type]
        window = ContextWindow(encode_row, budget, tokens=self.fake.max_model_len)
        return EngineAnswers(self.fake, window, self.options, worker, one_each=False, alive=alive)

    def run(self) -> JobReport:
        options = RunOptions(retry_failed=self.options.retry_failed, overwrite=self.options.overwrite, keep_larger=True)
        report = run_job(self, options)
        assert report is not None
        return report


def asked(fake: FakeEngine) -> list[tuple[str, list[str]]]:
    """(main, prompts) of each request."""
    return [
        (_text(request.main), [_text(branch.prompt) for branch in request.branches])  # type: ignore[union-attr]
        for request in fake.requests
    ]


def _text(ids: Any) -> str:
    return "".join(map(chr, ids))


def test_rows_with_one_context_are_one_request(out: Path, tmp_path: Path) -> None:
    rows = [context_row(n, f"q{n}", f"context {n % 3}") for n in range(9)]
    fake = FakeEngine()
    Recorded(write_rows(tmp_path / "in.jsonl", rows), out, fake).run()
    assert asked(fake) == [
        ("context 0", ["q0", "q3", "q6"]),
        ("context 1", ["q1", "q4", "q7"]),
        ("context 2", ["q2", "q5", "q8"]),
    ]
    assert [row["id"] for row in read_rows(out)] == list(range(9))
    seeds = {branch.sampling.seed for request in fake.requests for branch in request.branches if branch.sampling}  # type: ignore[union-attr]
    assert len(seeds) == 9


def test_a_large_group_is_parted_by_the_batch_size(out: Path, tmp_path: Path) -> None:
    fake = FakeEngine()
    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", "same") for n in range(10)])
    Recorded(data, out, fake, batch_size=4).run()
    assert [len(prompts) for _, prompts in asked(fake)] == [4, 4, 2]


def test_every_line_has_its_row(out: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any] | str] = [
        context_row(0, "zero", "c"),
        context_row("0", "text zero", "c"),
        context_row(0, "the same id", "c", more={"kept": [1, "字"]}),
        context_row("lost", "q", "", success=False, error="numpy 9.9 has no documentation here"),
        context_row("absent", "q", "", success=False),
        "{broken",
        "[]",
        json.dumps({"id": 7, "query": "no context"}),
        json.dumps({"id": True, "query": "q", "context": "c"}),
        json.dumps({"id": 8, "query": 3, "context": "c"}),
        json.dumps({"id": 9, "query": "untemplatable", "context": "c"}),
        json.dumps({"id": 10, "query": "enough", "context": ""}),
        json.dumps({"id": 11, "query": "breaks the tokenizer", "context": "c"}),
    ]
    fake = FakeEngine()
    report = Recorded(write_rows(tmp_path / "in.jsonl", lines), out, fake).run()
    rows = read_rows(out)
    assert [row.get("id") for row in rows] == [0, "0", 0, "lost", "absent", None, None, 7, True, 8, 9, 10, 11]
    assert [row["success"] for row in rows] == [True] * 3 + [False] * 8 + [True, False]
    assert all((row["answer"] is None) == ("error" in row) == (not row["success"]) for row in rows)
    assert rows[2]["more"] == {"kept": [1, "字"]}
    assert rows[3]["error"] == "numpy 9.9 has no documentation here"
    assert rows[3]["total_time"] == rows[3]["retrieval_time"] == 0.25
    assert rows[4]["error"] == "the context was not found, and its row does not say why"
    assert (rows[5]["line"], rows[7]["line"]) == (6, 8)
    assert 'line 8 has no "context"' in rows[7]["error"]
    assert "ask something else" in rows[10]["error"]
    # Those without a context to answer from cost no call.
    assert sorted(prompt for _, prompts in asked(fake) for prompt in prompts) == [
        "enough", "text zero", "the same id", "zero"
    ]  # fmt: skip
    # Only what cannot be explained may go well the next time.
    assert (report.completion.answered, report.completion.failed, report.completion.retryable) == (4, 9, 1)
    assert report.statistics.errors_by_class == {"DataError": 6, "NoContext": 2, "RuntimeError": 1}


def test_a_failed_answer_is_tried_again_and_only_that(out: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", "same") for n in range(6)])
    breaks = FakeEngine(fails=lambda prompt: _text(prompt) in ("q2", "q4"))
    first = Recorded(data, out, breaks).run()
    before = read_rows(out)
    assert (first.completion.answered, first.completion.failed, first.completion.retryable) == (4, 2, 2)
    assert [row["id"] for row in before if not row["success"]] == [2, 4]
    for row in before:
        if not row["success"]:
            assert (row["answer"], row["error"]) == (None, "it broke; mend it")
    fake = FakeEngine()
    second = Recorded(data, out, fake).run()
    assert asked(fake) == [("same", ["q2", "q4"])]
    after = read_rows(out)
    assert [row["success"] for row in after] == [True] * 6
    assert not any("error" in row for row in after)
    assert [row for row in after if row["id"] not in (2, 4)] == [row for row in before if row["success"]]
    assert (second.resumed, second.completion.answered) == (4, 6)
    whole, fresh = tmp_path / "whole.jsonl", FakeEngine()
    Recorded(data, whole, fresh).run()
    assert [row["answer"] for row in after] == [row["answer"] for row in read_rows(whole)]


def test_contexts_are_cut_to_the_window_and_the_row_says_so(
    out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The window takes 1000 characters, 100 of them for the answer; questions of about one length share their main."""
    parts = ["a" * 500, "b" * 300, "c" * 200]
    long, short = SEPARATOR.join(parts), "short"
    rows = [context_row(n, "q" * (n + 1), long if n < 3 else short) for n in range(4)]
    rows.append(context_row("hopeless", "q" * 1001, short))
    fake = FakeEngine()
    report = Recorded(write_rows(tmp_path / "in.jsonl", rows), out, fake).run()
    (cut, questions), other = asked(fake)
    assert (questions, other) == (["q", "qq", "qqq"], (short, ["qqqq"]))
    kept = cut.split(SEPARATOR)
    assert (kept[0], len(kept)) == (parts[0], 3)
    assert all(part.startswith(beginning) for part, beginning in zip(parts, kept, strict=True))
    answers = read_rows(out)
    assert [row.get("context_cut") for row in answers] == [True, True, True, False, None]
    assert "worker 0: 3 of 4 contexts were too long and are cut to the model's window of 1000 tokens" in caplog.messages
    assert "too long for the model even without its context" in answers[4]["error"]
    assert (report.completion.answered, report.completion.failed, report.completion.retryable) == (4, 1, 0)
    again = FakeEngine()
    Recorded(tmp_path / "in.jsonl", out, again).run()
    assert again.requests == []


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [("too_long", False), ("empty", False), ("vocabulary", False), ("memory", True), ("engine", True)],
)
def test_errors_of_the_engine_that_would_come_again_are_final(
    out: Path, tmp_path: Path, kind: Any, retryable: bool
) -> None:
    data = write_rows(tmp_path / "in.jsonl", [context_row(0, "q", "c")])
    fake = FakeEngine(fails=lambda prompt: True, error_kind=kind)
    report = Recorded(data, out, fake).run()
    assert (report.completion.failed, report.completion.retryable) == (1, int(retryable))


def test_failed_answers_can_be_left_as_they_are(out: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", "same") for n in range(3)])
    Recorded(data, out, FakeEngine(fails=lambda prompt: _text(prompt) == "q1")).run()
    fake = FakeEngine()
    report = Recorded(data, out, fake, retry_failed=False).run()
    assert (fake.requests, report.completion.failed) == ([], 1)


def test_memory_does_not_grow_with_the_rows(out: Path, tmp_path: Path) -> None:
    """What was answered is let go of: of 400 rows only those at work are ever held."""
    held = []

    def count(number: int) -> None:
        if number % 40 == 39:
            held.append(sum(type(thing) is ContextRow for thing in gc.get_objects()))

    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", f"c{n // 2}") for n in range(400)])
    Recorded(data, out, FakeEngine(on_request=count)).run()
    assert len(read_rows(out)) == 400
    assert len(held) == 5
    assert max(held) <= 10


def test_a_row_that_killed_its_worker_keeps_its_fields(tmp_path: Path) -> None:
    from parallelmind.io.jsonl import read_lines

    data = write_rows(tmp_path / "in.jsonl", [context_row("a", "q", "c"), "{broken"])
    task = AnswerTask(AnswerOptions(contexts_file=data, output_file=tmp_path / "out", model_path="m"))
    rows = [json.loads(task.failure(line, "line 1: it died.", "WorkerDied").payload) for line in read_lines(data)]
    assert {name: rows[0][name] for name in ASKED} == {name: context_row("a", "q", "c")[name] for name in ASKED}
    assert [(row["success"], row["answer"], row["error"]) for row in rows] == [(False, None, "line 1: it died.")] * 2
    assert "context" not in rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_path": None}, "--model_path is missing"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"inference_type": "magic"}, "--inference_type is 'magic'"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "--base_url is for --inference_type openai, not local"),
        ({"max_samples_per_worker": 0}, "--max_samples_per_worker is 0; it must be 1 or more"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"inference_type": "openai", "concurrency": 0}, "--concurrency is 0"),
        ({"inference_type": "openai", "load_in_4bit": True}, "--load_in_4bit is for --inference_type local"),
        ({"inference_type": "openai", "device_map": "auto"}, "--device_map is for --inference_type local"),
        ({"inference_type": "openai", "lora_rank": 4}, "--lora_rank is for --inference_type local and huggingface"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"rpm": 60.0}, "--rpm is for --inference_type togetherai and openai; leave it out"),
        ({"extra_body": {"top_k": 5}}, "--extra_body is for --inference_type togetherai and openai"),
    ],
)
def test_wrong_settings_name_the_flag(data: Path, out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        answer(data, out, **options)
    assert not out.with_name(out.name + ".job").exists()


def test_other_settings_do_not_mix_with_earlier_answers(out: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in.jsonl", [context_row(n, f"q{n}", "same") for n in range(3)])
    Recorded(data, out, FakeEngine(), temperature=0.2).run()
    before = out.read_bytes()
    Recorded(data, out, FakeEngine(), temperature=0.5).run()
    assert out.read_bytes() == before
    assert len(read_rows(out.with_name(f"{out.stem}_2.jsonl"))) == 3
    Recorded(data, out, FakeEngine(), temperature=0.5, overwrite=True).run()
