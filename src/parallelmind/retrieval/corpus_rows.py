"""One row of a corpus: an object of one version of a package, with its documentation or its source code.

A corpus folder holds `{import name}/{version}.jsonl` (docstrings) and `{import name}/{version}.srccodes.jsonl`. `path`
and `doc` are required, so corpora written by hand or by other tools can be read; fields beyond those below are ignored.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing
from parallelmind.io.jsonl import JsonLine, read_lines
from parallelmind.io.records import field_names, shorten, show_value, text_field

CORPUS_TYPES = ("docstring", "srccodes")

_SUFFIXES = {"docstring": ".jsonl", "srccodes": ".srccodes.jsonl"}
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r".+?[.!?。！？](?=\s|$)", re.DOTALL)
_CALL = re.compile(r"[\w.]+\(.*\)\s*(->.*)?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRow:
    """An object of a package."""

    path: str
    """Dotted name, where the object is defined."""
    aliases: tuple[str, ...] = ()
    """Every other public dotted name that reaches it."""
    doc: str
    """The docstring, or the source code; "" if the object exists and has none."""
    type: str = ""
    """function, class, method, property, attribute, module, ufunc …"""
    signature: str = ""
    """Such as `(a, axis=None)`; "" if there is none or it is not known."""
    parameters: tuple[tuple[str, int, bool], ...] | None = None
    """Name, kind as in `inspect.Parameter`, and whether it can be left out; None if they are not known."""
    deprecated: str = ""
    """What the package says about its end, by a decorator, a warning or in the documentation; "" if nothing."""
    calls: str = ""
    """What it does nothing but call, as its code names it: `self.find_element`; "" if it does more."""
    members: tuple[str, ...] = ()
    """Public names below a module or class."""
    home: str = ""
    """Where it is defined, if that is in another package or in Python itself; "" else."""
    source: str = ""
    """Where `doc` was found: static, add_newdoc or runtime."""
    distribution: str = ""
    version: str = ""
    wheel: str = ""
    """File name of the archive the row was made from."""
    wheel_sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """`path` and `aliases`."""
        return (self.path, *self.aliases)


_LISTS = ("aliases", "members")
_SELDOM = ("parameters", "deprecated", "calls", "home")
_FIELDS = tuple(field.name for field in fields(CorpusRow))


def corpus_file(corpus_path: Path, import_name: str, version: str, corpus_type: str = "docstring") -> Path:
    """The file of one version of a package; it need not exist."""
    return corpus_path / import_name / f"{version}{_SUFFIXES[corpus_type]}"


def corpus_versions(corpus_path: Path, corpus_type: str = "docstring") -> dict[str, list[str]]:
    """The versions of every import name that the folder holds, both sorted as text.

    Raises:
        DataError: `corpus_path` is not a folder.
    """
    if not corpus_path.is_dir():
        raise DataError(f"--corpus_path {corpus_path} is not a folder; make it with parallelmind corpus build.")
    found: dict[str, list[str]] = {}
    for path in sorted(corpus_path.glob("*/*.jsonl")):
        if path.name.startswith(".") or path.parent.name.startswith("."):
            continue
        is_source = path.name.endswith(_SUFFIXES["srccodes"])
        if is_source == (corpus_type == "srccodes"):
            found.setdefault(path.parent.name, []).append(path.name.removesuffix(_SUFFIXES[corpus_type]))
    return found


def read_corpus(path: Path) -> Iterator[CorpusRow]:
    """Stream the rows of one file.

    Raises:
        DataError: the file cannot be read, or a row is wrong; names the file, the line and the field.
    """
    for line in read_lines(path):
        yield parse_row(line, path)


def parse_row(line: JsonLine, path: Path) -> CorpusRow:
    """Parse and check one line of `path`.

    Raises:
        DataError: names the file, the line, the field and the value found.
    """
    where = f"{path}: line {line.number}"
    if line.too_long:
        raise DataError(f"{where} has {line.size:,} bytes, more than one row may have.")
    try:
        row = json.loads(line.content)
    except (ValueError, RecursionError) as error:
        found = shorten(line.content.decode("utf-8", "replace"))
        raise DataError(f"{where} is not valid JSON ({error}): {found}") from None
    if not isinstance(row, dict):
        raise DataError(f'{where} is {show_value(row)}; expected an object with "path" and "doc".')
    if missing := [name for name in ("path", "doc") if name not in row]:
        raise DataError(f'{where} has no "{missing[0]}" (found: {field_names(row)}).')
    text_field(row["path"], f'{where}: "path"')
    given = {name: row[name] for name in _FIELDS if name in ("path", "doc") or row.get(name) is not None}
    return CorpusRow(**{name: _value(value, name, where) for name, value in given.items()})


def write_corpus(path: Path, rows: Iterable[CorpusRow]) -> int:
    """Write the rows as a file that appears only when it is complete; returns their number.

    Raises:
        SettingsError: the file cannot be written.
    """
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(_content(row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _content(row: CorpusRow) -> dict[str, Any]:
    content = asdict(row)
    for name in _SELDOM:
        if content[name] in (None, ""):
            del content[name]
    return content


def _value(value: Any, name: str, where: str) -> Any:
    place = f'{where}: "{name}"'
    if name == "parameters":
        return _parameters(value, place)
    if name not in _LISTS:
        return text_field(value, place, may_be_empty=True)
    if not isinstance(value, list):
        raise DataError(f"{place} is {show_value(value)}; expected a list of texts.")
    return tuple(text_field(item, f"{place}[{index}]") for index, item in enumerate(value))


def _parameters(value: Any, place: str) -> tuple[tuple[str, int, bool], ...]:
    if not isinstance(value, list):
        raise DataError(f"{place} is {show_value(value)}; expected a list of [name, kind, can be left out].")
    found = []
    for index, item in enumerate(value):
        if not isinstance(item, list) or [type(one) for one in item] != [str, int, bool]:
            raise DataError(f"{place}[{index}] is {show_value(item)}; expected [name, kind, can be left out].")
        found.append((item[0], item[1], item[2]))
    return tuple(found)


def summary(doc: str) -> str:
    """The first sentence of the first paragraph, after the signature that docstrings of C functions begin with."""
    for paragraph in _PARAGRAPH_END.split(doc.strip(), maxsplit=8):
        text = " ".join(paragraph.split())
        if not text or _CALL.fullmatch(text):
            continue
        sentence = _SENTENCE.match(text)
        return sentence.group() if sentence else text
    return ""


def find_objects(corpus_path: Path, name: str, version: str | None) -> list[CorpusRow]:
    """The object of a dotted name, in one version or in each.

    Raises:
        DataError: no version has it; names the nearest.
    """
    found: list[CorpusRow] = []
    names: set[str] = set()
    for package, versions in corpus_versions(corpus_path).items():
        if not f"{name}.".startswith(f"{package}."):
            continue
        for each in versions:
            if version in (None, each):
                for row in read_corpus(corpus_file(corpus_path, package, each)):
                    names.update(row.names)
                    if name in row.names:
                        found.append(row)
    if not found:
        close = difflib.get_close_matches(name, names, n=5)
        hint = f"nearest: {', '.join(close)}" if close else "parallelmind corpus list shows what there is"
        raise DataError(f"{corpus_path} has no {name}" + (f" in version {version}" if version else "") + f"; {hint}.")
    return found
