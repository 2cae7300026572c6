"""OpenAI batch files as job input: one request a line.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …, "messages": […], …}}

`import_batch` writes them as context rows, which any answer backend takes:

- an HTTP server gets `body` as it is;
- on the engine `messages` become main and branch (`answering/prompts.py`), and `openai_body.engine_sampling` reads the
  fields that say how to sample; with `target="engine"` what it cannot do is refused here already;
- a user's backend sees the last message as `query` and what goes before as `context`.

`openai_batch_output.py` is the way back. The format: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from parallelmind.answering.openai_body import CHAT, ENDPOINTS, chat_messages, completion_prompt, engine_sampling
from parallelmind.errors import DataError
from parallelmind.io.atomic import refuse_same_file, replacing
from parallelmind.io.jsonl import JsonLine, read_lines
from parallelmind.io.records import field_names, load_object, quoted, show_value, text_field

REQUEST_FIELD = "openai_request"
"""Field of a context row that holds `{"url", "body"}`; of an answer row, `{"url", "model"}`."""

Target = Literal["http", "engine"]

_ENVELOPE = ("custom_id", "method", "url", "body")
_FORM = '{"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
PROBLEMS_KEPT = 20
"""How many problems a report lists."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One checked line."""

    custom_id: str
    url: str
    body: Mapping[str, Any]

    def context_row(self) -> dict[str, Any]:
        """The row of SPEC's context files that asks the same."""
        if self.url == CHAT:
            texts = [_plain(message) for message in self.body["messages"]]
            query, context = texts[-1], "\n\n".join(texts[:-1])
        else:
            query, context = _plain_content(self.body["prompt"]), ""
        return {
            "id": self.custom_id,
            "query": query or "(no text)",
            "context": context,
            "retrieval_method": "openai_batch",
            REQUEST_FIELD: {"url": self.url, "body": dict(self.body)},
        }


@dataclass(kw_only=True)
class ImportReport:
    """How many lines were imported: lines = requests + refused + left out."""

    requests: int = 0
    """Written as rows to answer."""
    refused: int = 0
    """Written as rows that carry their error: the output will have it under their `custom_id`."""
    left_out: int = 0
    """Lines without a `custom_id` of their own: no output line could be told to be theirs."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the first refused and left out lines, with their numbers."""


def parse_request(line: JsonLine, *, target: Target = "http") -> BatchRequest:
    """Parse and check one line.

    Raises:
        DataError: names the line, the field, the value found, and what is expected.
    """
    where = f"line {line.number}"
    if line.too_long:
        raise DataError(f"{where} has {line.size:,} bytes, more than one request may have.")
    row = load_object(line.content, where, expected=_FORM)
    custom_id = _custom_id(row, where)
    if unknown := [name for name in row if name not in _ENVELOPE]:
        raise DataError(f"{where} has {quoted(unknown)}; a batch line has {quoted(_ENVELOPE)} and nothing else.")
    if row.get("method", "POST") != "POST":
        raise DataError(f'{where}: "method" is {show_value(row["method"])}; expected "POST".')
    url = row.get("url")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise DataError(f'{where}: "url" is {show_value(url)}; supported are {quoted(list(ENDPOINTS))}.')
    body = row.get("body")
    if not isinstance(body, dict):
        raise DataError(f'{where}: "body" is {show_value(body)}; expected the request as an object.')
    _check_body(body, url, f'{where}: "body"', target)
    return BatchRequest(custom_id, url, body)


def import_batch(source: Path, destination: Path, *, target: Target = "http") -> ImportReport:
    """Write the requests of a batch file as context rows, in their order; memory grows by 8 bytes a line.

    A line that cannot be asked keeps its place with `success: false` and its error. Lines without a usable `custom_id`,
    and all but the first with the same one, are left out and reported.

    Raises:
        DataError: `source` cannot be read.
        SettingsError: `destination` cannot be written, or is `source`.
    """
    refuse_same_file(destination, source, flag="the output")
    report = ImportReport()
    repeated = _repeated_ids(source)
    with replacing(destination) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in read_lines(source):
            row = _imported(line, target, repeated, report)
            if row is not None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return report


def _imported(
    line: JsonLine, target: Target, repeated: Mapping[int, int], report: ImportReport
) -> dict[str, Any] | None:
    def problem(text: str) -> str:
        if len(report.problems) < PROBLEMS_KEPT:
            report.problems.append(text)
        return text

    if line.index in repeated:
        problem(f'line {line.number} has the "custom_id" of line {repeated[line.index]}; left out.')
        report.left_out += 1
        return None
    try:
        row = parse_request(line, target=target).context_row()
    except DataError as error:
        text = problem(str(error))
        custom_id = _usable_id(line)
        if custom_id is None:
            report.left_out += 1
            return None
        report.refused += 1
        return {"id": custom_id, "query": "(refused)", "context": "", "success": False, "error": text}
    report.requests += 1
    return row


def _repeated_ids(source: Path) -> dict[int, int]:
    """For each line whose `custom_id` came before, by its index: the number of the line it came in."""
    first = FirstLines()
    for line in read_lines(source):
        first.add(_usable_id(line), line.number)
    return first.repeated()


class FirstLines:
    """Finds ids that come again, in 16 bytes a line."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._numbers = array("Q")

    def add(self, custom_id: str | None, number: int) -> None:
        # A line without one gets a digest of its own: it repeats nothing.
        key = f"id {custom_id}" if custom_id is not None else f"line {number}"
        digest = blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        self._digests.append(int.from_bytes(digest, "big"))
        self._numbers.append(number)

    def repeated(self) -> dict[int, int]:
        import numpy as np

        digests = np.asarray(self._digests)
        order = np.argsort(digests, kind="stable")
        again = np.flatnonzero(digests[order[1:]] == digests[order[:-1]]) + 1
        found: dict[int, int] = {}
        for place in again.tolist():
            before, index = int(order[place - 1]), int(order[place])
            found[index] = found.get(before, self._numbers[before])
        return found


def _usable_id(line: JsonLine) -> str | None:
    try:
        return None if line.too_long else _custom_id(load_object(line.content, ""), "")
    except DataError:
        return None


def _custom_id(row: Mapping[str, Any], where: str) -> str:
    if "custom_id" not in row:
        raise DataError(f'{where} has no "custom_id" (found: {field_names(row)}).')
    return text_field(row["custom_id"], f'{where}: "custom_id"')


def _check_body(body: Mapping[str, Any], url: str, where: str, target: Target) -> None:
    asked = ENDPOINTS[url]
    if asked not in body:
        raise DataError(f'{where} has no "{asked}" (found: {field_names(body)}), which {url} needs.')
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise DataError(f"{where} has NaN, infinity or half of a surrogate pair; JSON cannot carry it.") from None
    if asked == "messages":
        messages = body["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise DataError(f'{where}."messages" is {show_value(messages)}; expected a list of messages.')
    if body.get("stream"):
        raise DataError(f'{where}."stream" is {show_value(body["stream"])}; answers of a batch are not streamed.')
    if target == "engine":
        engine_sampling(body, where)
        chat_messages(body, where) if asked == "messages" else completion_prompt(body, where)
    elif not isinstance(body.get("model"), str):
        raise DataError(f'{where}."model" is {show_value(body.get("model"))}; expected the name of a model.')


def _plain(message: Mapping[str, Any]) -> str:
    return _plain_content(message.get("content"))


def _plain_content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: Iterable[Any] = content if isinstance(content, list) else ()
    return "".join(_texts(parts))


def _texts(parts: Iterable[Any]) -> Iterator[str]:
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text
