"""Rows of contexts: what is accepted, what is said of the others, and the answer rows they become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.answering.context_rows import answer_row, parse_context_row, unreadable_row
from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine

FULL: dict[str, Any] = {
    "id": "7_0",
    "original_item_id": "7",
    "query_index": 0,
    "dedup_key": "abc",
    "query": "How are two arrays added?",
    "target_api": "numpy.add",
    "dependencies": {"numpy": "1.16.6"},
    "retrieval_method": "exact_api_match",
    "context": "add(x1, x2)",
    "context_length": 11,
    "retrieval_time": 0.25,
    "success": True,
}


def line(content: str | bytes | dict[str, Any], *, size: int | None = None) -> JsonLine:
    text = json.dumps(content) if isinstance(content, dict) else content
    raw = text.encode() if isinstance(text, str) else text
    return JsonLine(index=6, number=7, content=raw, size=size or len(raw))


def test_a_full_row_and_its_answer() -> None:
    row = parse_context_row(line(FULL))
    assert (row.id, row.query, row.context) == ("7_0", "How are two arrays added?", "add(x1, x2)")
    assert (row.target_api, row.dependencies, row.retrieval_method) == (
        "numpy.add",
        {"numpy": "1.16.6"},
        "exact_api_match",
    )
    assert (row.original_item_id, row.query_index, row.dedup_key, row.context_length) == ("7", 0, "abc", 11)
    answered = answer_row(row, answer="numpy.add", inference_time=0.5, worker_rank=2, tokens_in=9, tokens_out=None)
    assert list(answered.items()) == [
        ("id", "7_0"),
        ("original_item_id", "7"),
        ("query_index", 0),
        ("dedup_key", "abc"),
        ("query", "How are two arrays added?"),
        ("target_api", "numpy.add"),
        ("dependencies", {"numpy": "1.16.6"}),
        ("retrieval_method", "exact_api_match"),
        ("context_length", 11),
        ("retrieval_time", 0.25),
        ("answer", "numpy.add"),
        ("inference_time", 0.5),
        ("total_time", 0.75),
        ("worker_rank", 2),
        ("success", True),
        ("tokens_in", 9),
    ]


@pytest.mark.parametrize("identity", ["", "x", "数", 0, -3, 12345678901234567890])
def test_the_least_a_row_may_have(identity: str | int) -> None:
    row = parse_context_row(line({"id": identity, "query": "q", "context": ""}))
    assert row.id == identity
    assert type(row.id) is type(identity)
    assert answer_row(row, answer="a", inference_time=1.0, worker_rank=0) == {
        "id": identity,
        "query": "q",
        "answer": "a",
        "inference_time": 1.0,
        "total_time": 1.0,
        "worker_rank": 0,
        "success": True,
    }


def test_null_is_as_good_as_absent_where_a_field_is_optional() -> None:
    optional = [name for name in FULL if name not in ("id", "query", "context", "success")]
    row = parse_context_row(line({**FULL, **dict.fromkeys(optional)}))
    assert (row.target_api, row.dependencies, row.retrieval_time) == ("", {}, 0.0)


def test_unknown_fields_pass_through_untouched() -> None:
    extra = {
        "absent": {"last_version": "1.2", "moved_to": None},
        "score": [1.5, 2],
        "body": 3,
        "answers": [],
        "评": "🙂",
    }
    row = parse_context_row(line({**FULL, **extra}))
    answered = answer_row(row, answer="a", inference_time=0.0, worker_rank=0)
    assert {name: answered[name] for name in extra} == extra


def test_an_imported_request_is_kept_short_in_the_answer_row() -> None:
    request = {"url": "/v1/completions", "body": {"model": "m", "prompt": "long"}}
    row = parse_context_row(line({"id": "a", "query": "long", "context": "", "openai_request": request}))
    assert (row.endpoint, row.body) == ("/v1/completions", {"model": "m", "prompt": "long"})
    answered = answer_row(row, answer="a", inference_time=0.0, worker_rank=0)
    assert answered["openai_request"] == {"url": "/v1/completions", "model": "m"}


def test_a_failed_answer_has_an_error_and_no_answer() -> None:
    row = parse_context_row(line({**FULL, "answer": "old", "tokens": 1}))
    failed = answer_row(row, error="http 500", inference_time=0.5, worker_rank=0, error_class="http_500")
    assert (failed["answer"], failed["success"], failed["error"]) == (None, False, "http 500")
    assert failed["error_class"] == "http_500"
    with pytest.raises(AssertionError):
        answer_row(row, answer="x", error="y", inference_time=0.0, worker_rank=0)
    with pytest.raises(AssertionError):
        answer_row(row, inference_time=0.0, worker_rank=0)


def test_an_earlier_error_does_not_stay_with_an_answer() -> None:
    row = parse_context_row(line({**FULL, "error": "earlier"}))
    assert "error" not in answer_row(row, answer="a", inference_time=0.0, worker_rank=0)


def test_a_context_that_was_not_found_carries_its_error() -> None:
    row = parse_context_row(line({"id": 0, "query": "q", "success": False, "error": "no numpy 9"}))
    assert (row.success, row.error, row.context) == (False, "no numpy 9", "")
    assert parse_context_row(line({"id": 0, "query": "q", "context": None, "success": False})).error


BAD = {
    "{": "not valid JSON",
    "[]": "is a list",
    "{}": r'has no "id" and "query" and "context" \(found: no fields\)',
    '{"id": 1, "query": "q"}': r'has no "context" \(found: "id", "query"\)',
    '{"id": 1, "success": false}': 'has no "query"',
    '{"id": null, "query": "q", "context": ""}': '"id" is null; expected a text or a whole number',
    '{"id": 1.5, "query": "q", "context": ""}': r'"id" is a number \(1\.5\); expected a text or a whole number',
    '{"id": true, "query": "q", "context": ""}': r'"id" is a boolean',
    '{"id": ["a"], "query": "q", "context": ""}': r'"id" is a list',
    '{"id": "\\ud83d", "query": "q", "context": ""}': '"id" is .*which JSON cannot carry',
    '{"id": 1, "query": "", "context": ""}': '"query" is empty',
    '{"id": 1, "query": 3, "context": ""}': '"query" is a number',
    '{"id": 1, "query": "q", "context": null}': '"context" is null; expected a text',
    '{"id": 1, "query": "q", "context": ["a"]}': '"context" is a list',
    '{"id": 1, "query": "q", "context": "\\udc00"}': '"context" has half of a surrogate pair',
    '{"id": 1, "query": "q", "context": "", "success": "no"}': '"success" is a text .*expected true or false',
    '{"id": 1, "query": "q", "context": "", "success": 0}': '"success" is a number',
    '{"id": 1, "query": "q", "context": "", "retrieval_method": 3}': '"retrieval_method" is a number',
    '{"id": 1, "query": "q", "context": "", "target_api": []}': '"target_api" is a list',
    '{"id": 1, "query": "q", "context": "", "dependencies": []}': '"dependencies" is a list .*expected {"package"',
    '{"id": 1, "query": "q", "context": "", "dependencies": {"numpy": 1.2}}': r'"dependencies"\."numpy" is a number',
    '{"id": 1, "query": "q", "context": "", "retrieval_time": -1}': '"retrieval_time" is a number',
    '{"id": 1, "query": "q", "context": "", "retrieval_time": "1"}': '"retrieval_time" is a text',
    '{"id": 1, "query": "q", "context": "", "retrieval_time": NaN}': '"retrieval_time" is nan',
    '{"id": 1, "query": "q", "context": "", "query_index": 0.5}': '"query_index" is a number',
    '{"id": 1, "query": "q", "context": "", "context_length": "3"}': '"context_length" is a text',
    '{"id": 1, "query": "q", "context": "", "note": [1, Infinity]}': '"note" is .*which JSON cannot carry',
    '{"id": 1, "query": "q", "context": "", "openai_request": 3}': '"openai_request" is a number',
}


@pytest.mark.parametrize("content", BAD, ids=lambda content: content[:60])
def test_a_bad_row_names_line_field_and_value(content: str) -> None:
    with pytest.raises(DataError, match=BAD[content]) as caught:
        parse_context_row(line(content))
    assert str(caught.value).startswith("line 7")
    str(caught.value).encode()
    row = unreadable_row(line(content), str(caught.value), worker_rank=3)
    assert (row["success"], row["answer"], row["line"], row["worker_rank"]) == (False, None, 7, 3)
    json.dumps(row, allow_nan=False, ensure_ascii=False).encode()


def test_what_can_be_saved_of_a_bad_row() -> None:
    assert unreadable_row(line('{"id": 0, "query": 3}'), "e", worker_rank=0) == {
        "id": 0,
        "query": 3,
        "line": 7,
        "answer": None,
        "inference_time": 0.0,
        "total_time": 0.0,
        "worker_rank": 0,
        "success": False,
        "error": "e",
    }
    assert "id" not in unreadable_row(line(b"\xff"), "e", worker_rank=0)
    assert "id" not in unreadable_row(line('{"id": 1', size=10**9), "e", worker_rank=0)


def test_bytes_that_are_not_utf8_and_lines_that_are_too_long() -> None:
    with pytest.raises(DataError, match="line 7 is not UTF-8"):
        parse_context_row(line(b'{"id": "\xff"}'))
    with pytest.raises(DataError, match="line 7 has 300,000,000 bytes"):
        parse_context_row(line("{", size=300_000_000))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from([*FULL, "error", "openai_request", "x"]), json_values), st.booleans())
def test_any_row_is_parsed_or_refused_by_line_and_its_answer_can_be_written(row: dict[str, Any], whole: bool) -> None:
    given_line = line({**FULL, **row} if whole else row)
    refusal = "line 7"
    try:
        answered = answer_row(parse_context_row(given_line), answer="a", inference_time=0.0, worker_rank=0)
    except DataError as error:
        refusal = str(error)
        answered = unreadable_row(given_line, refusal, worker_rank=0)
    assert refusal.startswith("line 7")
    json.dumps(answered, allow_nan=False, ensure_ascii=False).encode()
