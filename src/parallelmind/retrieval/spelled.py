"""Names in a package's own words, and what they may stand for."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator

from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import look_up
from parallelmind.retrieval.version_index import VersionIndex


def spelled_out(index: VersionIndex, name: str, other: str, *, anywhere: bool) -> Iterator[str]:
    """What a name in a package's own words may stand for: a member of the same thing, or of something above it.

    Args:
        anywhere: whether it may also be the only thing of that name elsewhere: not a plain word of a sentence.
    """
    first, dot, rest = other.partition(".")
    if dot and first.startswith("_") and not first.startswith("__"):  # _schema.Table.to_metadata
        yield from spelled_out(index, name, rest, anywhere=anywhere)
        return
    if first == index.package:
        yield other
    if first.startswith("__"):
        yield f"{index.package}.{other}"
    is_foreign = bool(dot) and (first in sys.stdlib_module_names or index.is_beside(first))
    if is_foreign and not _has_own(index, name, first):
        yield other
    parent = name
    while parent := parent.rpartition(".")[0]:
        yield f"{parent}.{other}"
        if (
            dot and first.casefold() == parent.rpartition(".")[2].casefold()
        ):  # config.from_file, said of Config.from_json
            yield f"{parent}.{rest}"
    if dot and first.islower() and is_class(index, name.rpartition(".")[0]):  # app.json, said of Flask.json_encoder
        yield f"{name.rpartition('.')[0]}.{rest}"
    if anywhere and hasattr(builtins, other):
        yield other
    elif anywhere:
        ending = index.rows_ending_in(other.rpartition(".")[2])
        public = [
            index.public(place)
            for place in ending
            if not dot or any(f".{full}".endswith(f".{other}") for full in index.row(place).names)
        ]
        if len(public) == 1:
            yield public[0]
    if other.count(".") > 1 and first not in ("self", "cls"):  # HTTPResponse.headers.get
        yield from spelled_out(index, name, other.rpartition(".")[0], anywhere=anywhere)


def _has_own(index: VersionIndex, name: str, first: str) -> bool:
    """Whether something above `name` has a thing of its own called `first`: flask.json."""
    parent = name
    while parent := parent.rpartition(".")[0]:
        row = row_of(index, f"{parent}.{first}")
        if row is not None and row.path.startswith(f"{index.package}."):
            return True
    return False


def is_class(index: VersionIndex, name: str) -> bool:
    row = row_of(index, name)
    return row is not None and row.type == "class"


def is_module(index: VersionIndex, name: str) -> bool:
    row = row_of(index, name)
    return row is not None and row.type == "module"


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def row_of(index: VersionIndex, name: str) -> CorpusRow | None:
    place = look_up(index, name).row
    return None if place is None else index.row(place)
