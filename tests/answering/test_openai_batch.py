"""OpenAI batch files in and out: nothing twice, nothing lost, every refusal by line and name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallelmind.answering.context_rows import answer_row, parse_context_row
from parallelmind.answering.openai_batch import import_batch, parse_request
from parallelmind.answering.openai_batch_output import export_batch
from parallelmind.answering.openai_body import chat_messages, completion_prompt, engine_sampling
from parallelmind.errors import DataError, SettingsError
from parallelmind.io.jsonl import JsonLine
from parallelmind.settings.sampling import SamplingParams

CHAT = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "何时? 🙂"}],
    "max_tokens": 9,
}


def request(custom_id: Any = "a", body: Any = None, **changes: Any) -> dict[str, Any]:
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body or CHAT}
    return {**row, **changes}


def line(content: str | dict[str, Any]) -> JsonLine:
    raw = (content if isinstance(content, str) else json.dumps(content)).encode()
    return JsonLine(index=6, number=7, content=raw, size=len(raw))


def write(path: Path, *rows: str | dict[str, Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def test_a_request_becomes_a_context_row_that_keeps_its_body(tmp_path: Path) -> None:
    source = write(tmp_path / "in", request("a"), request("b", {"model": "m", "prompt": "p"}, url="/v1/completions"))
    report = import_batch(source, tmp_path / "rows")
    assert (report.requests, report.refused, report.left_out, report.problems) == (2, 0, 0, [])
    rows = [parse_context_row(line(row)) for row in read(tmp_path / "rows")]
    assert [(row.id, row.query, row.context) for row in rows] == [("a", "何时? 🙂", "Be brief."), ("b", "p", "")]
    assert [row.body for row in rows] == [CHAT, {"model": "m", "prompt": "p"}]
    assert [row.endpoint for row in rows] == ["/v1/chat/completions", "/v1/completions"]


def test_images_and_tools_go_to_a_server_as_they_are() -> None:
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text"},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}], "tools": [{"type": "function"}], "n": 3}
    row = parse_request(line(request(body=body))).context_row()
    assert row["query"] == "What is "
    assert row["openai_request"] == {"url": "/v1/chat/completions", "body": body}


BAD = {
    "{": "not valid JSON",
    "[]": 'is a list .*expected an object: ."custom_id"',
    json.dumps({"url": "x"}): 'has no "custom_id" .found: "url".',
    json.dumps(request(3)): r'"custom_id" is a number \(3\)',
    json.dumps(request("")): '"custom_id" is empty',
    json.dumps(request(method="GET")): '"method" is a text ."GET".; expected "POST"',
    json.dumps(request(url="/v1/embeddings")): '"url" is a text ."/v1/embeddings".; supported are',
    json.dumps(request(url=["/v1/completions"])): '"url" is a list',
    json.dumps(request(body=[1])): '"body" is a list',
    json.dumps(request(priority=1)): 'has "priority"; a batch line has',
    json.dumps(request(body={"model": "m"})): '"body" has no "messages"',
    json.dumps(request(body={"model": "m", "messages": []})): r'"body"\."messages" is a list \(\[\]\)',
    json.dumps(request(body={"model": "m", "messages": ["hi"]})): r'"body"\."messages" is a list',
    json.dumps(request(body={"messages": CHAT["messages"]})): r'"body"\."model" is null',
    json.dumps(request(body={**CHAT, "stream": True})): r'"body"\."stream" is a boolean \(true\)',
    json.dumps(request(body={**CHAT, "temperature": float("nan")})): '"body" has NaN',
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: content[:70])
def test_a_bad_line_names_line_field_and_value(content: str) -> None:
    with pytest.raises(DataError, match=BAD[content]) as caught:
        parse_request(line(content))
    assert str(caught.value).startswith("line 7")


REFUSED_BY_THE_ENGINE = {
    "n": 2,
    "tools": [{"type": "function"}],
    "response_format": {"type": "json_object"},
    "logprobs": True,
    "logit_bias": {"3": 101},
    "frequency_penalty": 2.5,
    "presence_penalty": False,
    "reasoning_effort": "low",
    "web_search_options": {},
    "temperature": "hot",
    "max_tokens": 1.5,
    "seed": True,
    "stop": [""],
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_ENGINE)
def test_what_the_engine_cannot_do_is_refused_by_name(name: str) -> None:
    body = {**CHAT, name: REFUSED_BY_THE_ENGINE[name]}
    assert parse_request(line(request(body=body))).body == body
    with pytest.raises(DataError, match=rf'line 7: "body"\."{name}" is ') as caught:
        parse_request(line(request(body=body)), target="engine")
    assert len(str(caught.value)) < 300


REFUSED_MESSAGES: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "tool", "content": "x"}], r'"messages"\[0\]."role" is a text ."tool".'),
    ([{"role": ["user"], "content": "x"}], '"role" is a list'),
    ([{"role": "user", "content": [{"type": "image_url"}]}], r'"content"\[0\] is an object .*sounds are not supported'),
    ([{"role": "user", "content": None}], '"content" is null'),
    ([{"role": "assistant", "content": "x", "tool_calls": [1]}], 'has "tool_calls"; the engine takes texts only'),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "the last message is of the assistant"),
]


@pytest.mark.parametrize(("messages", "error"), REFUSED_MESSAGES)
def test_messages_the_engine_cannot_read(messages: list[dict[str, Any]], error: str) -> None:
    with pytest.raises(DataError, match=error):
        parse_request(line(request(body={"model": "m", "messages": messages})), target="engine")


def test_what_the_engine_reads_of_a_body() -> None:
    asked = {
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "stop": "END",
        "seed": 3,
        "n": 1,
        "stream": False,
        "user": "u",
        "metadata": {"k": "v"},
        "logprobs": None,
        "response_format": {"type": "text"},
        "frequency_penalty": 0.5,
        "presence_penalty": -1,
        "logit_bias": {"3": 1, "17": -100},
    }
    sampling = engine_sampling({**asked, "model": "m", "messages": []})
    assert sampling == {
        "max_new_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "stop": ("END",),
        "seed": 3,
        "frequency_penalty": 0.5,
        "presence_penalty": -1,
        "logit_bias": {3: 1, 17: -100},
    }
    SamplingParams(**sampling)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s", "name": "n"}, {"role": "user", "content": parts}]
    assert chat_messages({"messages": messages}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ab"},
    ]
    assert completion_prompt({"prompt": ["one"]}) == "one"
    with pytest.raises(DataError, match='"prompt" is a list'):
        completion_prompt({"prompt": ["one", "two"]})


def test_what_is_said_of_half_characters_can_be_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {**request("a"), "\ud83d": 1})
    assert import_batch(source, tmp_path / "rows").refused == 1
    assert 'has "?"; a batch line has' in read(tmp_path / "rows")[0]["error"]


def test_every_line_is_accounted_for(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in",
        request("a"),
        request("b", {"model": "m"}),
        "",
        request("a"),
        "{broken",
        request("c"),
        request("a", {"model": "m"}),
        request("b"),
        request(None),
    )
    report = import_batch(source, tmp_path / "rows")
    assert (report.requests, report.refused, report.left_out) == (2, 1, 5)
    assert [problem.split(";")[0].split("(")[0].strip() for problem in report.problems] == [
        'line 2: "body" has no "messages"',
        'line 4 has the "custom_id" of line 1',
        "line 5 is not valid JSON",
        'line 7 has the "custom_id" of line 1',
        'line 8 has the "custom_id" of line 2',
        'line 9: "custom_id" is null',
    ]
    rows = read(tmp_path / "rows")
    assert [(row["id"], row.get("success", True)) for row in rows] == [("a", True), ("b", False), ("c", True)]
    assert parse_context_row(line(rows[1])).error == report.problems[0]


def test_an_empty_file_and_files_that_are_not_there(tmp_path: Path) -> None:
    assert import_batch(write(tmp_path / "in"), tmp_path / "rows").requests == 0
    assert (tmp_path / "rows").read_bytes() == b""
    with pytest.raises(DataError, match="cannot read"):
        import_batch(tmp_path / "nope", tmp_path / "rows")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SettingsError, match="cannot be written"):
        import_batch(tmp_path / "in", tmp_path / "folder")
    with pytest.raises(SettingsError, match="the output is the input itself"):
        import_batch(tmp_path / "in", tmp_path / "folder" / ".." / "in")


def test_there_and_back(tmp_path: Path) -> None:
    requests = [request(f"r{n}", {**CHAT, "model": f"m{n}"}) for n in range(4)]
    requests.append(request("text", {"model": "t", "prompt": "p"}, url="/v1/completions"))
    import_batch(write(tmp_path / "in", *requests), tmp_path / "rows")
    results: list[dict[str, Any]] = [
        {"answer": "好"},
        {"error": "too slow", "error_class": "timeout"},
        {"answer": "cut", "finish_reason": "length", "tokens_in": 3, "tokens_out": 2},
        {"answer": "x", "openai_response": {"id": "theirs", "choices": []}},
        {"answer": "y"},
    ]
    answers = [
        answer_row(parse_context_row(line(row)), inference_time=0.1, worker_rank=0, **result)
        for row, result in zip(read(tmp_path / "rows"), results, strict=True)
    ]
    report = export_batch(write(tmp_path / "answers", *answers), tmp_path / "out", created=5)
    assert (report.answered, report.failed, report.left_out) == (4, 1, 0)
    lines = read(tmp_path / "out")
    assert [row["custom_id"] for row in lines] == ["r0", "r1", "r2", "r3", "text"]
    assert len({row["id"] for row in lines}) == 5
    body = lines[0]["response"]["body"]
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "m0", 5)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "好", "refusal": None}
    assert "usage" not in body
    assert (lines[1]["response"], lines[1]["error"]) == (None, {"code": "timeout", "message": "too slow"})
    body = lines[2]["response"]["body"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert lines[3]["response"]["body"] == {"id": "theirs", "choices": []}
    body = lines[4]["response"]["body"]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "y")


def test_the_official_types_read_the_output(tmp_path: Path) -> None:
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    import_batch(
        write(tmp_path / "in", request("a"), request("b", {"model": "m", "prompt": "p"}, url="/v1/completions")),
        tmp_path / "rows",
    )
    answers = [
        answer_row(
            parse_context_row(line(row)), answer="x", inference_time=0.1, worker_rank=0, tokens_in=1, tokens_out=2
        )
        for row in read(tmp_path / "rows")
    ]
    export_batch(write(tmp_path / "answers", *answers), tmp_path / "out")
    chat, text = (row["response"]["body"] for row in read(tmp_path / "out"))
    assert ChatCompletion.model_validate(chat, strict=True).choices[0].message.content == "x"
    assert Completion.model_validate(text, strict=True).choices[0].text == "x"


def test_an_output_that_cannot_be_exported(tmp_path: Path) -> None:
    good = {"id": 1, "success": True, "answer": "x"}
    report = export_batch(write(tmp_path / "a", good, {"line": 3, "success": False, "error": "e"}), tmp_path / "out")
    assert (report.answered, report.left_out, report.problems) == (1, 1, ['line 2 has no "id"; left out.'])
    with pytest.raises(DataError, match=r'line 3 has the "id" of line 1 \(1 such lines\)'):
        export_batch(write(tmp_path / "a", good, {**good, "id": 2}, {**good, "id": "1"}), tmp_path / "out")
    with pytest.raises(DataError, match='line 1: "success" is null and "answer" null; expected the output of'):
        export_batch(write(tmp_path / "a", {"id": 1, "query": "q"}), tmp_path / "out")
    with pytest.raises(SettingsError, match="the output is the input itself"):
        export_batch(tmp_path / "a", tmp_path / "a")
    assert [row["custom_id"] for row in read(tmp_path / "out")] == ["1"]  # the former file stays
    half = {**good, "id": "\ud83d", "answer": "cut \ud83d"}
    assert export_batch(write(tmp_path / "a", good, half), tmp_path / "half").answered == 2
    exported = read(tmp_path / "half")[1]
    assert exported["custom_id"] == "\ud83d"
    assert exported["response"]["body"]["choices"][0]["message"]["content"] == "cut \ud83d"
    report = export_batch(write(tmp_path / "a", {**good, "id": None}, {**good, "id": None}), tmp_path / "none")
    assert (report.answered, report.left_out) == (0, 2)
