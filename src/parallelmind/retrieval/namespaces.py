"""Which names the modules, classes and instances of one version have, as they were found by asking the running package.

`{version}.names.jsonl.gz` beside the corpus file has a `Head` and then a `Namespace` a line, numbered from 0. What
`getattr` looks through is kept, and not every dotted name: a class has its own names and the numbers of its bases.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parallelmind.retrieval.corpus_rows import file_beside
from parallelmind.retrieval.packed_lines import damaged, read_packed, write_packed

Kind = Literal["module", "class", "instance"]
KINDS = ("module", "class", "instance")
ANY, SOME = "any", "some"
_OPEN = ("", ANY, SOME)
TARGET = re.compile(r"(?:[so]\d{1,9}|=[^\x00-\x20]{0,1000})?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all namespaces of a version have in common."""

    python: str
    """Version of the interpreter that was asked."""
    objects: list[str]
    """The `path` of the corpus row of each described object, by number; "" if it has none."""
    errors: dict[str, str] = field(default_factory=dict)
    """Modules that could not be imported, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """Names, and where each leads."""

    kind: Kind
    name: str = ""
    """Of the module, of the class, or of the instance's class; "" if that has none that leads to it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """`s` and the number of a namespace, `o` and the number of an object, `=` and where another package defines it."""
    modules: tuple[str, ...] = ()
    """The names in `sys.modules` that lead to a module."""
    object: int | None = None
    """The described object that it belongs to."""
    bases: tuple[int, ...] = ()
    """What is looked through after it: the method resolution order without `object`."""
    meta: tuple[int, ...] = ()
    """What answers for a class after that: the classes of the class, without `type`."""
    open: str = ""
    """Whether a `__getattr__` answers for more names: `any`, `some` (unknown which), or "" for none."""
    asked: int = 0
    """How many names a `__getattr__` was asked for; 0 if there is none."""
    dynamic: bool = False
    """Whether instances of the class have a `__getattr__` of their own."""
    files: tuple[str, ...] = ()
    """Modules that lie in the folder of a package, imported or not."""
    instance: tuple[str, ...] = ()
    """What only instances of the class have."""
    said: Mapping[str, str] = field(default_factory=dict)
    """The deprecation warnings that names give when they are asked for."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What is said of names that are gone, when they are asked for."""
    raises: tuple[str, ...] = ()
    """Names that are listed, and raise an error when they are asked for."""


_FIELDS = {item.name: item for item in dataclasses.fields(Namespace)}
_TEXTS, _NUMBERS = ("modules", "files", "instance", "raises"), ("bases", "meta")


def parse_namespace(row: Any) -> Namespace:
    """Check one line.

    Raises:
        ValueError: it is not a namespace.
    """
    if not isinstance(row, dict) or row.get("kind") not in KINDS or row.get("open", "") not in _OPEN:
        raise ValueError(f"a wrong namespace: {str(row)[:200]}")
    given: dict[str, Any] = {name: row[name] for name in _FIELDS if name in row}
    given["names"] = {_text(name): _target(target) for name, target in _items(row.get("names", {}))}
    for name in ("said", "refused"):
        given[name] = {_text(key): _text(said) for key, said in _items(row.get(name, {}))}
    given["name"] = _text(row.get("name", ""))
    for name in _TEXTS:
        given[name] = tuple(map(_text, _list(row.get(name, []))))
    for name in _NUMBERS:
        given[name] = tuple(map(_number, _list(row.get(name, []))))
    if "object" in given:
        given["object"] = _number(given["object"])
    given["asked"], given["dynamic"] = _number(row.get("asked", 0)), bool(row.get("dynamic"))
    return Namespace(**given)


def printable_namespace(space: Namespace, clean: Callable[[str], str]) -> Namespace:
    """With texts that can be shown: what a package says of its names comes from the package."""
    said, refused = ({name: clean(text) for name, text in texts.items()} for texts in (space.said, space.refused))
    return dataclasses.replace(space, name=clean(space.name), said=said, refused=refused)


def to_row(space: Namespace) -> dict[str, Any]:
    """The JSON object of a line: what is not empty."""
    return {name: value for name in _FIELDS if (value := getattr(space, name)) not in ("", (), {}, 0, False, None)} | (
        {"names": dict(space.names)} | ({} if space.object is None else {"object": space.object})
    )


def from_row(row: dict[str, Any]) -> Namespace:
    """What `to_row` made of a namespace that was checked: nothing is checked again."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Namespace(**given)


def names_file(corpus_file: Path) -> Path:
    """The file of namespaces beside a corpus file; it need not exist."""
    return file_beside(corpus_file, "names")


def write_namespaces(path: Path, head: Head, spaces: Iterable[Namespace]) -> None:
    """See `write_packed`.

    Raises:
        SettingsError: the file cannot be written.
    """
    write_packed(path, (dataclasses.asdict(head), *map(to_row, spaces)))


def read_namespaces(path: Path) -> tuple[Head, Iterator[Namespace]]:
    """The head, and the namespaces in order.

    Raises:
        DataError: the file cannot be read, or is not such a file; also while the namespaces are taken.
    """
    rows = read_packed(path)
    try:
        row = next(rows)
        head = Head(
            python=_text(row["python"]),
            objects=list(map(_text, _list(row["objects"]))),
            errors={_text(name): _text(error) for name, error in _items(row.get("errors", {}))},
        )
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    return head, _parsed(rows, path)


def _parsed(rows: Iterator[Any], path: Path) -> Iterator[Namespace]:
    for row in rows:
        try:
            yield parse_namespace(row)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from None


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.100} where names should be")
    return value.items()


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.100} where a list should be")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4000:
        raise ValueError(f"{value!r:.100} where a text should be")
    return value


def _target(value: Any) -> str:
    if not TARGET.match(_text(value)):
        raise ValueError(f"{value!r:.100} where a target should be")
    return str(value)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9:
        raise ValueError(f"{value!r:.100} where a number should be")
    return value
