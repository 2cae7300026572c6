"""Read a file of queries item by item, whichever of the two forms it has.

One JSON object keyed by id may be hundreds of megabytes; `json.load` of it takes several times its size in memory.
Here the standard decoder takes one value after another from a window over the file, so that memory holds one item.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object, shorten

_CHUNK = 2**20
_MAX_VALUE = 2**28
_FLAT_FIELDS = {"id", "query", "target_api", "dependencies", "queries", "original_data"}
_LONGEST_TOKEN = 16
"""The longest token of JSON besides strings and numbers: an error nearer to the end of the window may be due to it."""
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class QueryItem:
    """One item, not checked yet."""

    id: str | int
    """Its key in the object; of a JSONL row its number, from 0."""
    value: Any
    where: str
    """Its place in the file, for error texts."""
    error: str | None = None
    """Why a line is not JSON; `value` is then None."""


def read_items(path: Path, *, chunk_bytes: int = _CHUNK) -> Iterator[QueryItem]:
    """Stream the items of a JSON object keyed by id, or of a JSONL file.

    Args:
        chunk_bytes: how much of the file is read at a time.
    Raises:
        DataError: the file cannot be read, or is neither; a JSON object is broken in the middle (names the line).
    """
    next(read_lines(path, max_records=1, max_line_bytes=_CHUNK), None)  # refuses files that are not text
    window = _Window(path, chunk_bytes)
    try:
        if window.next_is("["):
            raise DataError(
                f"{path} is a JSON list; expected an object keyed by id, or one query a line (JSONL: without the list)."
            )
        keyed = window.next_is("{") and _is_keyed(window)
        if keyed:
            yield from _object_items(window)
            return
    finally:
        window.close()
    yield from _line_items(path)


def _is_keyed(window: _Window) -> bool:
    """Whether the object that begins here holds items by id, rather than being the first line's query."""
    if window.next_is("}"):
        return True
    if window.peek() != '"':
        return False
    key = window.value()
    if key in _FLAT_FIELDS:
        return False
    window.expect(":")
    return window.peek() == "{"


def _object_items(window: _Window) -> Iterator[QueryItem]:
    window.rewind()
    window.expect("{")
    if not window.next_is("}"):
        while True:
            line = window.line()
            key = window.value()
            if not isinstance(key, str):
                raise window.error("expected an id in quotes")
            window.expect(":")
            yield QueryItem(id=key, value=window.value(), where=f"line {line}, item {shorten(json.dumps(key))}")
            if not window.next_is(","):
                break
        window.expect("}")
    if window.peek():
        raise window.error("expected the end of the file after the object")


def _line_items(path: Path) -> Iterator[QueryItem]:
    for line in read_lines(path):
        where = f"line {line.number}"
        try:
            if line.too_long:
                raise DataError(f"{where} has {line.size:,} bytes, more than one query may have.")
            yield QueryItem(id=line.index, value=load_object(line.content, where), where=where)
        except DataError as error:
            yield QueryItem(id=line.index, value=None, where=where, error=str(error))


class _Window:
    """A text file of which only the part around the current position is in memory."""

    def __init__(self, path: Path, chunk_bytes: int) -> None:
        self._path = path
        self._chunk_bytes = chunk_bytes
        self._file = path.open("rb")
        self._parse = json.JSONDecoder().raw_decode
        self.rewind()

    def close(self) -> None:
        self._file.close()

    def rewind(self) -> None:
        self._file.seek(0)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._line = 1
        self._counted_to = 0
        self._ended = False

    def line(self) -> int:
        self.peek()
        self._line += self._text.count("\n", self._counted_to, self._position)
        self._counted_to = self._position
        return self._line

    def peek(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def next_is(self, character: str) -> bool:
        """Whether that character comes next; if so, steps over it."""
        found = self.peek() == character
        self._position += found
        return found

    def expect(self, character: str) -> None:
        if not self.next_is(character):
            raise self.error(f"expected {character!r}")

    def value(self) -> Any:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._position)
            except RecursionError:
                raise self.error("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._position > _MAX_VALUE:
                    raise self.error("the item is too long, or a quote is not closed") from None
                at_end = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN
                # Perhaps only the window ends there. It doubles, so that a long value is not parsed over and over.
                if not at_end or self._ended:
                    self._position = error.pos
                    raise self.error(error.msg) from None
                self._read_on(max(self._chunk_bytes, len(self._text) - self._position))
            except ValueError as error:  # a whole number of thousands of digits
                raise self.error(str(error).partition(":")[0]) from None
            else:
                if end < len(self._text) or self._ended:
                    self._position = end
                    return value
                self._read_on()  # a number may go on

    def error(self, problem: str) -> DataError:
        found = shorten(self._text[self._position : self._position + 100])
        return DataError(f"{self._path} is not valid JSON at line {self.line()}: {problem}; found {found!r}.")

    def _read_on(self, size: int | None = None) -> bool:
        if self._ended:
            return False
        self._line += self._text.count("\n", self._counted_to, self._position)
        chunk = self._file.read(size or self._chunk_bytes)
        self._ended = not chunk
        try:
            self._text = self._text[self._position :] + self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path} is not UTF-8 (near line {self.line()}: {error.reason}); save it as UTF-8."
            ) from None
        self._position = self._counted_to = 0
        return not self._ended
