"""One question with the context found for it, as the answer stage reads it, and the row it becomes.

    {"id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies": {"numpy": "1.16.6"},
     "retrieval_method", "context", "context_length", "retrieval_time", "success"}

`id`, `query` and `context` are enough. Fields beyond these are kept and written to the answer row as they came.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallelmind.answering.openai_batch import REQUEST_FIELD
from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine
from parallelmind.io.records import field_names, load_object, quoted, shorten, show_value, text_field

_REQUIRED = ("id", "query", "context")
_FORM = '{"id": 0, "query": "...", "context": "..."}'
_NO_REASON = "the context was not found, and its row does not say why"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRow:
    """A checked row."""

    id: str | int
    query: str
    context: str = ""
    retrieval_method: str = ""
    target_api: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    """Version by package."""
    retrieval_time: float = 0.0
    """Seconds."""
    success: bool = True
    """False: there is no context to answer from, and `error` says why."""
    error: str | None = None
    original_item_id: str | int | None = None
    query_index: int | None = None
    dedup_key: str | None = None
    context_length: int | None = None
    body: Mapping[str, Any] | None = None
    """The whole request of a row imported from an OpenAI batch file (`answering/openai_batch.py`)."""
    endpoint: str = ""
    """Where `body` goes, such as "/v1/chat/completions"."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All fields as they came, but the context: what the answer row begins with."""


def parse_context_row(line: JsonLine) -> ContextRow:
    """Parse and check one line.

    Raises:
        DataError: names the line, the field, the value found, and what is expected.
    """
    where = f"line {line.number}"
    if line.too_long:
        raise DataError(f"{where} has {line.size:,} bytes, more than one row may have; shorten its context.")
    row = load_object(line.content, where, expected=_FORM)
    success = _success(row, where)
    required = _REQUIRED if success else _REQUIRED[:2]
    if missing := [name for name in required if name not in row]:
        raise DataError(f"{where} has no {quoted(missing)} (found: {field_names(row)}).")
    endpoint, body = _openai_request(row, where)
    fields = {name: value for name, value in row.items() if name != "context"}
    if body is not None:
        fields[REQUEST_FIELD] = {"url": endpoint, "model": body.get("model")}
    _check_storable(fields, where)
    error = _optional_text(row, "error", where)
    return ContextRow(
        id=_id(row, "id", where),
        query=text_field(row["query"], f'{where}: "query"', may_be_empty=not success),
        context=_optional_text(row, "context", where) if not success else _text(row, "context", where),
        retrieval_method=_optional_text(row, "retrieval_method", where),
        target_api=_optional_text(row, "target_api", where),
        dependencies=_dependencies(row.get("dependencies"), where),
        retrieval_time=_seconds(row.get("retrieval_time"), where),
        success=success,
        error=None if success else error or _NO_REASON,
        original_item_id=_id(row, "original_item_id", where) if row.get("original_item_id") is not None else None,
        query_index=_count(row, "query_index", where),
        dedup_key=_optional_text(row, "dedup_key", where) or None,
        context_length=_count(row, "context_length", where),
        body=body,
        endpoint=endpoint,
        fields=fields,
    )


def answer_row(
    row: ContextRow,
    *,
    answer: str | None = None,
    error: str | None = None,
    inference_time: float,
    worker_rank: int | None,
    **extra: Any,
) -> dict[str, Any]:
    """The output row: the fields of the context row without the context, followed by the answer or the error.

    Exactly one of `answer` and `error` is given, so that an error text is never stored as an answer. `extra` are more
    fields (`tokens_in`, `tokens_out`, `finish_reason` …); those that are None are left out. `worker_rank` is None if no
    worker lived to write the row.
    """
    assert (answer is None) != (error is None), "an answer or an error"
    outcome: dict[str, Any] = {
        "answer": answer,
        "inference_time": inference_time,
        "total_time": row.retrieval_time + inference_time,
        "worker_rank": worker_rank,
        "success": answer is not None,
    }
    if error is not None:
        outcome["error"] = error
    # Of an earlier attempt, if the row was an answer row once.
    fields = {name: value for name, value in row.fields.items() if name not in (*outcome, "error")}
    return fields | outcome | {name: value for name, value in extra.items() if value is not None}


def unreadable_row(line: JsonLine, error: str, *, worker_rank: int | None) -> dict[str, Any]:
    """The output row of a line that is no context row: its `id` and `query` where they can be saved, and its number."""
    fields: dict[str, Any] = {}
    if not line.too_long:
        try:
            row = load_object(line.content, "")
        except DataError:
            row = {}
        for name in ("id", "query"):
            try:
                _check_storable({name: row.get(name)}, "")
            except DataError:
                continue
            if name in row:
                fields[name] = row[name]
    fields["line"] = line.number
    return answer_row(
        ContextRow(id=line.index, query="", fields=fields), error=error, inference_time=0.0, worker_rank=worker_rank
    )


def _success(row: Mapping[str, Any], where: str) -> bool:
    success = row.get("success", True)
    if not isinstance(success, bool):
        raise DataError(f'{where}: "success" is {show_value(success)}; expected true or false.')
    return success


def _id(row: Mapping[str, Any], name: str, where: str) -> str | int:
    value = row[name]
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise DataError(f'{where}: "{name}" is {show_value(value)}; expected a text or a whole number.')


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    return text_field(row[name], f'{where}: "{name}"', may_be_empty=True)


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str:
    return "" if row.get(name) is None else _text(row, name, where)


def _count(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise DataError(f'{where}: "{name}" is {show_value(value)}; expected a whole number, 0 or more.')


def _seconds(value: Any, where: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f'{where}: "retrieval_time" is {show_value(value)}; expected seconds, 0 or more.')
    return float(value)


def _dependencies(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f'{where}: "dependencies" is {show_value(value)}; expected {{"package": "version"}}.')
    for package, version in value.items():
        # A number would have lost the end of versions such as 1.20.
        text_field(version, f'{where}: "dependencies"."{shorten(package)}"', may_be_empty=True)
    return dict(value)


def _openai_request(row: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any] | None]:
    request = row.get(REQUEST_FIELD)
    if request is None:
        return "", None
    if not isinstance(request, dict) or not isinstance(request.get("url"), str):
        raise DataError(
            f'{where}: "{REQUEST_FIELD}" is {show_value(request)}; expected {{"url", "body"}} as an import writes.'
        )
    if not isinstance(request.get("body"), dict):
        return "", None  # of a row that was an answer row once
    return request["url"], request["body"]


def _check_storable(fields: Mapping[str, Any], where: str) -> None:
    for name, value in fields.items():
        try:
            json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode("utf-8")
        except ValueError:  # NaN or infinity; or half a surrogate pair (UnicodeEncodeError)
            found = shorten(ascii(value))
            raise DataError(
                f'{where}: "{ascii(name)[1:-1]}" is {found}, which JSON cannot carry; '
                "expected numbers and whole characters."
            ) from None
