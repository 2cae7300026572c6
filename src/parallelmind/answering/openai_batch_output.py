"""Answer rows as the output file of an OpenAI batch.

{"id", "custom_id", "response": {"status_code", "request_id", "body": {… a chat completion …}}, "error": null}
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from parallelmind.answering.openai_batch import PROBLEMS_KEPT, REQUEST_FIELD, FirstLines
from parallelmind.answering.openai_body import COMPLETIONS
from parallelmind.errors import DataError
from parallelmind.io.atomic import refuse_same_file, replacing
from parallelmind.io.jsonl import JsonLine, read_lines
from parallelmind.io.records import load_object, show_value

RESPONSE_FIELD = "openai_response"
"""Field of an answer row that holds the whole response of a server; without it a response is made from the answer."""

_FORM = '{"id": "...", "answer": "...", "success": true}'


@dataclass(kw_only=True)
class ExportReport:
    """What was written: one line for each custom_id."""

    answered: int = 0
    failed: int = 0
    """Lines with an error."""
    left_out: int = 0
    """Rows without an id: they answer no request."""
    problems: list[str] = field(default_factory=list)
    """The first of these."""


def export_batch(answers: Path, destination: Path, *, created: int | None = None) -> ExportReport:
    """Write the answer rows of a finished job as a batch output file, in their order.

    `created` is the time to state, in seconds since 1970; None is that of the file `answers`.

    Raises:
        DataError: `answers` cannot be read, a row is not an answer row, or two rows have the same id.
        SettingsError: `destination` cannot be written, or is `answers`.
    """
    refuse_same_file(destination, answers, flag="the output")
    _check_ids(answers)
    created = int(answers.stat().st_mtime) if created is None else created
    report = ExportReport()
    # An answer may hold half a surrogate pair; then it stands there as JSON's own escape.
    with (
        replacing(destination) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        for line, row in _rows(answers):
            if row.get("id") is None:
                report.left_out += 1
                if len(report.problems) < PROBLEMS_KEPT:
                    report.problems.append(f'line {line.number} has no "id"; left out.')
                continue
            written = output_line(row, f"{answers} line {line.number}", created=created)
            file.write(json.dumps(written, ensure_ascii=False) + "\n")
            report.failed += written["error"] is not None
            report.answered += written["error"] is None
    return report


def output_line(row: Mapping[str, Any], where: str, *, created: int) -> dict[str, Any]:
    """The batch output line of one answer row.

    Raises:
        DataError: the row is not an answer row.
    """
    custom_id = str(row["id"])
    answer, success = row.get("answer"), row.get("success")
    digest = blake2b(custom_id.encode("utf-8", "backslashreplace"), digest_size=12).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{digest}", "custom_id": custom_id, "response": None, "error": None}
    if success is False:
        message = row.get("error") if isinstance(row.get("error"), str) else "the request has no answer"
        line["error"] = {"code": row.get("error_class") or "request_failed", "message": message}
        return line
    if success is not True or not isinstance(answer, str):
        raise DataError(
            f'{where}: "success" is {show_value(success)} and "answer" {show_value(answer)}; expected the output of '
            "parallelmind answer."
        )
    body = row.get(RESPONSE_FIELD) or _completion(row, answer, digest, created)
    line["response"] = {"status_code": 200, "request_id": f"req_{digest}", "body": body}
    return line


def _completion(row: Mapping[str, Any], answer: str, digest: str, created: int) -> dict[str, Any]:
    request = row.get(REQUEST_FIELD) or {}
    text = request.get("url") == COMPLETIONS
    choice: dict[str, Any] = {"index": 0}
    choice |= {"text": answer} if text else {"message": {"role": "assistant", "content": answer, "refusal": None}}
    choice |= {"logprobs": None, "finish_reason": row.get("finish_reason") or "stop"}
    body = {
        "id": f"{'cmpl' if text else 'chatcmpl'}-{digest}",
        "object": "text_completion" if text else "chat.completion",
        "created": created,
        "model": request.get("model") or "",
        "choices": [choice],
    }
    tokens = row.get("tokens_in"), row.get("tokens_out")
    if isinstance(tokens[0], int) and isinstance(tokens[1], int):
        body["usage"] = {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": tokens[0] + tokens[1],
        }
    return body


def _check_ids(answers: Path) -> None:
    ids = FirstLines()
    numbers = array("Q")
    for line, row in _rows(answers):
        ids.add(None if row.get("id") is None else str(row["id"]), line.number)
        numbers.append(line.number)
    if repeated := ids.repeated():
        again, first = min((numbers[index], first) for index, first in repeated.items())
        raise DataError(
            f'{answers} line {again} has the "id" of line {first} ({len(repeated)} such lines); '
            "a batch output has every custom_id once."
        )


def _rows(answers: Path) -> Iterator[tuple[JsonLine, dict[str, Any]]]:
    for line in read_lines(answers):
        where = f"{answers} line {line.number}"
        if line.too_long:
            raise DataError(f"{where} has {line.size:,} bytes, more than one row may have.")
        yield line, load_object(line.content, where, expected=_FORM)
