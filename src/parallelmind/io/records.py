"""One row of the input: `{"main", "branches"}` or `{"text"}`, checked field by field.

Fields beyond these are allowed and ignored, but for `id`, which is copied to the output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine

_SHOWN = 80
_SHOWN_LINE = 500
_FORMS = '{"main": "...", "branches": ["...", "..."]} or {"text": "..."}'


@dataclass(frozen=True, slots=True)
class Record:
    """A main and the prompts of its branches."""

    main: str
    """"" only if no prompt is empty."""
    branches: tuple[str, ...]
    """Empty for a `{"text"}` row: main is continued once."""
    fields: Mapping[str, Any]
    """What the output rows copy: `id`, if the row has one."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The text each answer answers, in the order of the answers."""
        return self.branches or (self.main,)


def parse_record(line: JsonLine) -> Record:
    """Parse and check one line.

    Raises:
        DataError: names the line, the field, the value found, and what is expected.
    """
    return parse_texts(load_record(line), line.number)


def load_record(line: JsonLine) -> dict[str, Any]:
    """The row of a line.

    Raises:
        DataError: it is too long or no object, or its id cannot be copied.
    """
    where = f"line {line.number}"
    if line.too_long:
        raise DataError(f"{where} has {line.size:,} bytes, more than one record may have; split it.")
    row = load_object(line.content, where)
    _check_id(row, where)
    return row


def parse_texts(row: Mapping[str, Any], number: int) -> Record:
    """The record of a row, which stands in the line of this number.

    Raises:
        DataError: names the line, the field, the value found, and what is expected.
    """
    where, fields = f"line {number}", copied_fields(row)
    if "text" in row:
        if clash := [name for name in ("main", "branches") if name in row]:
            raise DataError(f'{where} has "text" and {quoted(clash)}; expected {_FORMS}, not both.')
        return Record(main=text_field(row["text"], f'{where}: "text"'), branches=(), fields=fields)
    if missing := [name for name in ("main", "branches") if name not in row]:
        raise DataError(f"{where} has no {quoted(missing)} (found: {field_names(row)}); expected {_FORMS}.")
    main = text_field(row["main"], f'{where}: "main"', may_be_empty=True)
    return Record(main=main, branches=_branches(row["branches"], where, main), fields=fields)


def copied_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the output rows of a record copy."""
    return {"id": row["id"]} if "id" in row else {}


def salvage_fields(line: JsonLine) -> dict[str, Any]:
    """`input` (main, else the beginning of the line) and `id` for the error row of a bad record."""
    fallback = {"input": shorten(line.content.decode("utf-8", "replace"), _SHOWN_LINE)}
    if line.too_long:
        return fallback
    try:
        row = load_object(line.content, "")
    except DataError:
        return fallback
    main = row.get("main", row.get("text"))
    fields = {"input": _encodable(main)} if isinstance(main, str) else fallback
    try:
        _check_id(row, "")
    except DataError:
        return fields
    return fields | copied_fields(row)


def shorten(text: str, limit: int = _SHOWN) -> str:
    """The text itself, or its beginning and a mark that more followed."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def load_object(content: bytes, where: str, *, expected: str = _FORMS) -> dict[str, Any]:
    try:
        row = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = content[error.start : error.start + 4].hex(" ")
        raise DataError(f"{where} is not UTF-8 at byte {error.start + 1} ({found}); save it as UTF-8.") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply; expected {expected}.") from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError) and (field := _field_with_long_integer(content)):
            raise DataError(
                f"{where}: {field} holds an integer of more than {sys.get_int_max_str_digits():,} digits, which cannot "
                "be read; write it as a text."
            ) from None
        found = shorten(content.decode("utf-8", "replace"))
        raise DataError(f"{where} is not valid JSON ({error}): {found}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is {show_value(row)}; expected an object: {expected}.")
    return row


def _field_with_long_integer(content: bytes) -> str:
    """The field that holds an integer with more digits than Python converts; "" if there is none."""
    mark = object()

    def read_integer(digits: str) -> Any:
        return mark if len(digits.removeprefix("-")) > sys.get_int_max_str_digits() else 0

    def holds_mark(value: Any) -> bool:
        left = [value]  # not by recursion: a hostile row is nested as deeply as can be read
        while left:
            value = left.pop()
            if value is mark:
                return True
            left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return False

    try:
        row = json.loads(content, parse_int=read_integer)
    except RecursionError:  # reading with a function of ours takes a little more room than without
        return "the line"
    if not isinstance(row, dict):
        return "the line" if holds_mark(row) else ""
    return next((quoted([name]) for name, value in row.items() if holds_mark(value)), "")


def _branches(value: Any, where: str, main: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f'{where}: "branches" is {show_value(value)}; expected a list of texts.')
    if not value:
        raise DataError(f'{where}: "branches" is empty; expected at least one text, or the form {{"text": "..."}}.')
    texts = []
    for place, item in enumerate(value):
        name = f'{where}: "branches"[{place}]'
        own = ""  # a main of this branch only, as training rows may have it
        if isinstance(item, dict):
            if "prompt" not in item:
                raise DataError(f'{name} has no "prompt"; expected a text or {{"prompt": text}}.')
            if item.get("main") is not None:
                own = text_field(item["main"], name + '."main"', may_be_empty=True)
            name, item = name + '."prompt"', item["prompt"]
        # With a main, an empty branch just continues it.
        texts.append(own + text_field(item, name, may_be_empty=bool(main or own)))
    return tuple(texts)


def text_field(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is {show_value(value)}; expected a text.")
    if not value and not may_be_empty:
        raise DataError(f"{name} is empty; expected a text.")
    if value != _encodable(value):
        raise DataError(
            f"{name} has half of a surrogate pair (an escape like \\ud83d on its own): "
            f"{show_value(_encodable(value))}; expected whole characters."
        )
    return value


def _check_id(row: Mapping[str, Any], where: str) -> None:
    try:
        json.dumps(row.get("id"), allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError:  # NaN or infinity; or half a surrogate pair (UnicodeEncodeError)
        raise DataError(
            f'{where}: "id" is {row["id"]!r}, which JSON cannot carry; expected a text or a number.'
        ) from None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def show_value(value: Any) -> str:
    kinds = {
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    if value is None:
        return "null"
    # Columns of Hugging Face datasets may hold what JSON has no kind for, such as dates, bytes and pictures.
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return f"{kind} ({shorten(_as_json(value))})"


def field_names(row: Mapping[str, Any]) -> str:
    return shorten(", ".join(_as_json(name) for name in row)) or "no fields"


def quoted(names: Sequence[str]) -> str:
    return " and ".join(f'"{_encodable(name)}"' for name in names)


def _as_json(value: Any) -> str:
    """A value as messages show it: always valid Unicode, since messages are written to files."""
    return _encodable(json.dumps(value, ensure_ascii=False, default=str))
