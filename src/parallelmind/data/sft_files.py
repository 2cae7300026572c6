"""Stream the rows of a training file: JSONL, one big JSON list, CSV or TSV with a header, or lines of text.

Memory does not grow with the file. A row that cannot be read is a `RawRow` with its reason, not the end of
the file; only a JSON list that is broken off or misspelled ends it: nothing can be told apart after that.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from parallelmind.errors import DataError
from parallelmind.io.jsonl import MAX_LINE_BYTES, read_lines
from parallelmind.io.records import shorten

Container = Literal["jsonl", "json_list", "csv", "tsv", "text"]

_SUFFIXES: dict[str, Container] = {".csv": "csv", ".tsv": "tsv", ".txt": "text", ".md": "text"}
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_CHUNK = 2**20
_NEAR_THE_END = 16
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of the file: a value, or the reason why there is none."""

    line: int
    """Line in the file on which it begins, from 1."""
    value: Any = None
    error: str | None = None


def container_of(path: Path) -> Container:
    """Tell from the name, and for JSON and unknown names from the first character, how the file is built.

    Raises:
        DataError: the file cannot be read, is empty, or is compressed or UTF-16.
    """
    first = next(read_lines(path, max_records=1), None)  # also refuses what is not UTF-8 text at all
    if first is None:
        raise DataError(f"{path} is empty; expected at least one row.")
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    start = first.content.lstrip()[:1]
    if start == b"[":
        return "json_list"
    return "jsonl" if start == b"{" or suffix in _JSON_SUFFIXES else "text"


def read_rows(path: Path, container: Container) -> Iterator[RawRow]:
    """Yield the rows of the file in order; blank lines are not rows.

    Raises:
        DataError: the file cannot be read, a CSV has no usable header, or a JSON list is broken.
    """
    if container == "json_list":
        return _json_list(path)
    if container in ("csv", "tsv"):
        return _table(path, "\t" if container == "tsv" else ",")
    return _lines(path, is_json=container == "jsonl")


def _lines(path: Path, *, is_json: bool) -> Iterator[RawRow]:
    for line in read_lines(path):
        if line.too_long:
            yield RawRow(line.number, error=f"has {line.size:,} bytes, more than one row may have")
            continue
        try:
            text = line.content.decode("utf-8")
            yield RawRow(line.number, json.loads(text) if is_json else text)
        except UnicodeDecodeError as error:
            yield RawRow(line.number, error=f"is not UTF-8 at byte {error.start + 1}")
        except RecursionError:
            yield RawRow(line.number, error="is nested too deeply")
        except ValueError as error:
            yield RawRow(line.number, error=f"is not valid JSON ({error}): {shorten(text)}")


def _table(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    # Bytes that are not UTF-8 become lone surrogates here, and one bad row later on.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Strict: otherwise a quote that is never closed takes the rest of the file into its cell, unnoticed.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise DataError(f"{path}: its first line is not valid CSV ({error}); correct its quotes.") from None
        if len(set(header)) != len(header) or not all(header):
            raise DataError(
                f"{path}: its first line must name every column once, not {shorten(', '.join(header))!r}; "
                "add a header such as instruction,output."
            )
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield RawRow(line, error=f"is not valid CSV ({error})")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                yield RawRow(line, error=f"has {len(cells)} cells, the header has {len(header)}")
                continue
            yield RawRow(line, dict(zip(header, cells, strict=True)))


def _json_list(path: Path) -> Iterator[RawRow]:
    """Decode the elements of a list one by one."""
    with path.open("rb") as file:
        text = _JsonText(file, path)
        text.next_character()
        text.at += 1  # the bracket by which the list was recognised
        if text.next_character() == "]":
            return
        while True:
            if not text.next_character():
                raise text.broken("the file ends within its list")
            line = text.line
            yield RawRow(line, text.next_value())
            mark = text.next_character()
            text.at += 1
            if mark == "]":
                if text.next_character():
                    raise text.broken(f"more text after the list: {text.shown()}")
                return
            if mark != ",":
                found = f"expected a comma between two rows, found {mark!r}"
                raise text.broken(found if mark else "the list does not end")


class _JsonText:
    """A JSON text, read through a buffer that holds little more than one value."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.at = 0
        self.line = 1
        self._file = file
        self._path = path
        self._buffer = ""
        self._ended = False
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """Step over white space; "" at the end of the file."""
        while True:
            while self.at < len(self._buffer) and self._buffer[self.at] in _SPACE:
                self.line += self._buffer[self.at] == "\n"
                self.at += 1
            if self.at < len(self._buffer) or self._ended:
                return self._buffer[self.at : self.at + 1]
            self._read(_CHUNK)

    def next_value(self) -> Any:
        """Step over one value and return it."""
        while True:
            waiting = len(self._buffer) - self.at
            try:
                value, end = self._decoder.raw_decode(self._buffer, self.at)
            except RecursionError:
                raise self.broken("a row is nested too deeply") from None
            except json.JSONDecodeError as error:
                near_the_end = error.pos >= len(self._buffer) - _NEAR_THE_END
                if self._ended or not (near_the_end or "Unterminated string" in error.msg):
                    raise self.broken(f"not valid JSON ({error.msg}): {self.shown(error.pos)}") from None
                if waiting > MAX_LINE_BYTES:
                    raise self.broken(f"a row of more than {MAX_LINE_BYTES:,} characters") from None
                self._read(max(_CHUNK, waiting))  # doubling keeps the repeated decoding linear
                continue
            if end == len(self._buffer) and not self._ended:  # a number might go on
                self._read(_CHUNK)
                continue
            self.line += self._buffer.count("\n", self.at, end)
            self.at = end
            return value

    def broken(self, reason: str) -> DataError:
        return DataError(
            f"{self._path}, line {self.line}: {reason}; repair the JSON list there, or save the rows as "
            "JSONL, one a line."
        )

    def shown(self, at: int | None = None) -> str:
        at = self.at if at is None else at
        return shorten(self._buffer[at : at + 100])

    def _read(self, size: int) -> None:
        chunk = self._file.read(size)
        self._ended = not chunk
        try:
            text = self._bytes.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.broken(f"somewhere after it the file is not UTF-8 ({error.reason})") from None
        self._buffer, self.at = self._buffer[self.at :] + text, 0
