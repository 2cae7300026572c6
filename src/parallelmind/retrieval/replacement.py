"""What takes the place of an API in a version that does not have it, or has it as deprecated, and how that is known.

The evidence, the strongest first: what the package says of its end; another name of the same object in a version that
has both; the same documentation or the same last name elsewhere; the table of what nothing else shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import PRESENT, deprecation, look_up
from parallelmind.retrieval.matching import find_renamed
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.version_index import VersionIndex, summary_digest

_QUOTED = re.compile(r"`{1,2}~?([A-Za-z_][\w.]*)(?:\([^`]*\))?`{1,2}")
_ADVICE = re.compile(
    r"(?:\buse|\busing|alternative:|favou?r of|replaced (?:by|with)|renamed (?:to|as)|moved to|migrate to|switch to|"
    r"superseded by|consider|see)\s+(?:the\s+)?(?:new\s+)?(?::[\w:]+:)?[`'\"~@.]{0,3}([A-Za-z_][\w.]*)",
    re.I,
)
_DOTTED = re.compile(r"\b([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)")
_LETTERS_THAT_TELL = 5
_ONE_OF_MANY = 4
"""More rows with one summary than this, and the summary says nothing about any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """An API that takes the place of another."""

    name: str
    evidence: str
    """A sentence."""


def find_replacement(
    index: VersionIndex, name: str, table: RenameTable, witness: VersionIndex | None = None, said: str = ""
) -> Replacement | None:
    """What to use in the version of `index` instead of `name`.

    Args:
        witness: a version that has the name; None if there is none.
        said: what the package says of its end, in any version.
    """
    for found in _candidates(index, name, table, witness, said):
        if found.name != name and _can_stand_in(index, found.name, name):
            return found
    former = table.former_name(name, index.version)
    if former and look_up(index, former).verdict == PRESENT:
        return Replacement(name=former, evidence="That is what it was called before.")
    return None


def _candidates(
    index: VersionIndex, name: str, table: RenameTable, witness: VersionIndex | None, said: str
) -> Iterator[Replacement]:
    for other in _advised(said):
        is_name = not other.isalpha() or not other.islower() or re.search(rf"[`'\"]~?{re.escape(other)}", said)
        for full in _spelled_out(index, name, table.spelled_out(other), anywhere=bool(is_name)):
            yield Replacement(name=full, evidence=f"{index.package} says of {name}: {said}")
    if witness is not None and (home := look_up(witness, name).home):
        yield Replacement(name=home, evidence=f"In {witness.package} {witness.version} it is that.")
    row = _row(witness, name) if witness is not None else None
    if witness is not None and row is not None:
        where = f"{witness.package} {witness.version}"
        if row.home.startswith("builtins."):
            yield Replacement(name=row.home.removeprefix("builtins."), evidence=f"In {where} it is Python's own.")
            return
        if row.home and not row.home.startswith(f"{witness.package}."):
            yield Replacement(name=row.home, evidence=f"In {where} it is that.")
        for other in sorted(row.names, key=_length):
            yield Replacement(name=other, evidence=f"In {where} it is the same object as {name}.")
        yield from _by_documentation(index, name, row, witness)
    yield from _by_spelling(index, name, row)
    yield from _of_that_name(index, name)
    if (other_row := find_renamed(index, name, table)) is not None:
        yield Replacement(name=index.public(other_row), evidence="Its module was renamed.")
    removal = table.removal(name, index.version)
    if removal and removal[1]:
        yield Replacement(name=removal[1], evidence=f"The release notes of {index.package} {removal[0]} say so.")


def _advised(said: str) -> Iterator[str]:
    """The names that a deprecation speaks of as what to use, in order."""
    seen = set()
    for pattern in (_ADVICE, _QUOTED, _DOTTED):
        for found in pattern.finditer(said):
            name = found.group(1).strip(".")
            if name not in seen:
                seen.add(name)
                yield name


def _spelled_out(index: VersionIndex, name: str, other: str, *, anywhere: bool) -> Iterator[str]:
    """What a name in a package's own words may stand for: a member of the same thing, or of something above it.

    Args:
        anywhere: whether it may also be the only thing of that name elsewhere: not a plain word of a sentence.
    """
    if other.split(".")[0] == index.package:
        yield other
    parent = name
    while parent := parent.rpartition(".")[0]:
        yield f"{parent}.{other}"
        last = parent.rpartition(".")[2]
        if other.startswith(f"{last}."):  # BaseModel.model_dump, said of BaseModel.dict
            yield parent + other.removeprefix(last)
    if "." in other or not anywhere:
        return
    public = [index.public(row) for row in index.rows_ending_in(other)]
    if len(public) == 1:
        yield public[0]


def _by_spelling(index: VersionIndex, name: str, row: CorpusRow | None) -> Iterator[Replacement]:
    """numpy.NaN is numpy.nan, numpy.round_ is numpy.round; only what is of the same kind."""
    parent, _, last = name.rpartition(".")
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower()
    for other in dict.fromkeys((last.lower(), last.rstrip("_"), f"{last}_", snake)):
        there = _row(index, f"{parent}.{other}") if parent and other and other != last else None
        if there is not None and row is not None and there.type == row.type:
            yield Replacement(name=f"{parent}.{other}", evidence="It is the same name, spelled otherwise.")


def _of_that_name(index: VersionIndex, name: str) -> Iterator[Replacement]:
    """The only thing with the same last name; or beside it, the only one whose name begins or ends so."""
    parent, _, last = name.rpartition(".")
    rows = index.rows_ending_in(last) if len(last) >= _LETTERS_THAT_TELL else []
    if len(rows) == 1:
        where = f"{index.package} {index.version}"
        yield Replacement(name=index.public(rows[0]), evidence=f"It is all that {where} has of the name {last}.")
    found = look_up(index, parent)
    members = index.row(found.row).members if found.row is not None and len(last) >= _LETTERS_THAT_TELL else ()
    like = [one for one in members if one != last and (one.endswith(f"_{last}") or one.startswith(f"{last}_"))]
    if len(like) == 1:
        yield Replacement(name=f"{parent}.{like[0]}", evidence=f"Nothing else in {parent} has a name like it.")


def _by_documentation(index: VersionIndex, name: str, row: CorpusRow, witness: VersionIndex) -> Iterator[Replacement]:
    digest = summary_digest(row.doc)
    rows = index.rows_summarised_as(digest) if digest else []
    if len(rows) <= _ONE_OF_MANY:
        last = name.rpartition(".")[2]
        same = [place for place in rows if index.row(place).type == row.type]
        for place in sorted(same, key=lambda place: last not in index.public(place).split(".")):
            evidence = f"Its documentation begins as that of {name} does in {witness.package} {witness.version}."
            yield Replacement(name=index.public(place), evidence=evidence)
    if not row.doc:
        return
    last = name.rpartition(".")[2]
    ending = index.rows_ending_in(last)
    same = [place for place in ending if index.row(place).type == row.type and index.row(place).doc == row.doc]
    if len(same) == 1:
        evidence = f"Its documentation is that of {name} in {witness.package} {witness.version}."
        yield Replacement(name=index.public(same[0]), evidence=evidence)


def _can_stand_in(index: VersionIndex, other: str, name: str) -> bool:
    """Whether it is there, is not deprecated itself, and is no part of what is replaced or the whole of it."""
    if f"{other}.".startswith(f"{name}.") or name.startswith(f"{other}."):
        return False
    if other.partition(".")[0] != index.package:
        return True
    found = look_up(index, other)
    return found.verdict == PRESENT and not deprecation(index, found)


def _row(index: VersionIndex, name: str) -> CorpusRow | None:
    place = look_up(index, name).row
    return None if place is None else index.row(place)


def _length(name: str) -> tuple[int, int, str]:
    return name.count("."), len(name), name
