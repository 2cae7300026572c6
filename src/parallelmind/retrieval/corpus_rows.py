"""One row of a corpus: an object of one version of a package, with its documentation or its source code.

A corpus folder holds `{import name}/{version}.jsonl` (docstrings) and `{import name}/{version}.srccodes.jsonl`, as they
are or compressed in blocks (`.gz`), as `corpus build` makes them. `path` and `doc` are required, so corpora written by
hand or by other tools can be read; fields beyond those below are ignored.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from parallelmind.errors import DataError
from parallelmind.io.atomic import replacing
from parallelmind.io.jsonl import JsonLine, read_lines
from parallelmind.io.records import field_names, shorten, show_value, text_field
from parallelmind.retrieval.row_blocks import SUFFIX, write_blocks

CORPUS_TYPES = ("docstring", "srccodes")

_SUFFIXES = {"docstring": ".jsonl", "srccodes": ".srccodes.jsonl"}
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r".+?[.!?。！？](?=\s|$)", re.DOTALL)
_CALL = re.compile(r"[\w.]+\(.*\)\s*(->.*)?$", re.DOTALL)


class Example(NamedTuple):
    """Code that uses an object."""

    code: str
    source: str
    """Where it stands, such as `docs/quickstart.rst of flask 3.1.0`."""
    introduction: str = ""
    """What is said right before it."""


class Mention(NamedTuple):
    """What a page of the documentation says where it names an object."""

    text: str
    source: str


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
    """Where `doc` was found: static, add_newdoc, runtime or pages (of the documentation)."""
    place: str = ""
    """Where its code is in the archive: `pkg/core.py:10-25`; "" if it is compiled, or made when the package runs."""
    examples: tuple[Example, ...] = ()
    """From pages of documentation, other docstrings and tests; those of `doc` itself are not repeated."""
    mentions: tuple[Mention, ...] = ()
    uses: int = 0
    """In how many pages, examples and tests of the package it is called, or named as code."""
    distribution: str = ""
    version: str = ""
    wheel: str = ""
    """File name of the archive the row was made from."""
    wheel_sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """`path` and `aliases`."""
        return (self.path, *self.aliases)

    @property
    def passages(self) -> tuple[str, ...]:
        """What pages of documentation say about it, in other words than `doc`."""
        introductions = (one.introduction for one in self.examples if one.introduction)
        return (*introductions, *(one.text for one in self.mentions))


_BESIDE = ("names", "notes")
"""Files of a version that hold no rows."""
_LISTS = ("aliases", "members")
_TEXTS: dict[str, type[Example] | type[Mention]] = {"examples": Example, "mentions": Mention}
_SELDOM = ("parameters", "deprecated", "calls", "home", "place", "examples", "mentions", "uses")
_FIELDS = tuple(field.name for field in fields(CorpusRow))


def corpus_file(corpus_path: Path, import_name: str, version: str, corpus_type: str = "docstring") -> Path:
    """The file of one version of a package, compressed if there is such a one; it need not exist."""
    plain = corpus_path / import_name / corpus_name(version, corpus_type)
    packed = packed_file(plain)
    return packed if packed.exists() else plain


def corpus_name(version: str, corpus_type: str) -> str:
    """The name of a corpus file that is not compressed."""
    return f"{version}{_SUFFIXES[corpus_type]}"


def file_beside(corpus_file: Path, kind: str) -> Path:
    """Another file of the same version, compressed: `names` for `{version}.names.jsonl.gz`."""
    version = corpus_file.name.removesuffix(SUFFIX).removesuffix(".jsonl").removesuffix(".srccodes")
    return corpus_file.with_name(f"{version}.{kind}.jsonl{SUFFIX}")


def packed_file(plain: Path) -> Path:
    """The compressed form of a corpus file."""
    return plain.with_name(plain.name + SUFFIX)


def corpus_versions(corpus_path: Path, corpus_type: str = "docstring") -> dict[str, list[str]]:
    """The versions of every import name that the folder holds, both sorted as text.

    Raises:
        DataError: `corpus_path` is not a folder.
    """
    if not corpus_path.is_dir():
        raise DataError(f"--corpus_path {corpus_path} is not a folder; make it with parallelmind corpus build.")
    found: dict[str, list[str]] = {}
    for path in sorted({path.with_name(path.name.removesuffix(SUFFIX)) for path in corpus_path.glob("*/*.jsonl*")}):
        if path.name.startswith(".") or path.parent.name.startswith(".") or path.suffix != ".jsonl":
            continue
        kind = next((kind for kind in ("srccodes", *_BESIDE) if path.name.endswith(f".{kind}.jsonl")), "docstring")
        if kind == corpus_type:
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
    """Write the rows as a file that appears only when it is complete, in blocks if it is a .gz; returns their number.

    Raises:
        SettingsError: the file cannot be written.
    """
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in rows:
            count += 1
            yield (json.dumps(_content(row), ensure_ascii=False) + "\n").encode()

    with replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == SUFFIX:
            write_blocks(file, lines())
        else:
            file.writelines(lines())
    return count


def _content(row: CorpusRow) -> dict[str, Any]:
    content = asdict(row)
    for name in _SELDOM:
        if content[name] in (None, "", 0) or (name in _TEXTS and not content[name]):
            del content[name]
    return content


def _value(value: Any, name: str, where: str) -> Any:
    place = f'{where}: "{name}"'
    if name == "parameters":
        return _parameters(value, place)
    if name == "uses":
        if type(value) is not int or value < 0:
            raise DataError(f"{place} is {show_value(value)}; expected a number.")
        return value
    if name in _TEXTS:
        return _texts(value, place, _TEXTS[name])
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


def _texts(value: Any, place: str, kind: type[Example] | type[Mention]) -> tuple[Example | Mention, ...]:
    if not isinstance(value, list):
        raise DataError(f"{place} is {show_value(value)}; expected a list of lists of texts.")
    fields = kind._fields
    least = len(fields) - len(kind._field_defaults)
    for index, item in enumerate(value):
        is_fitting = isinstance(item, list) and least <= len(item) <= len(fields)
        if not is_fitting or not all(isinstance(one, str) for one in item):
            raise DataError(f"{place}[{index}] is {show_value(item)}; expected [{', '.join(fields)}].")
    return tuple(kind(*item) for item in value)


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
