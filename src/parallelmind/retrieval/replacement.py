"""What takes the place of an API in a version that does not have it, or has it as deprecated, and how that is known.

The evidence, the strongest first: what the package says of its end; its release notes; another name of the same object
in a version that has both; what it does nothing but call; the same documentation or the same last name elsewhere; the
table of what nothing else shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallelmind.retrieval.advice import advised
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import PRESENT, deprecation, look_up
from parallelmind.retrieval.matching import find_renamed
from parallelmind.retrieval.noted import cited, formers_noted, replacements_noted
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.spelled import is_class, is_module, is_private, row_of, spelled_out
from parallelmind.retrieval.version_index import VersionIndex, summary_digest
from parallelmind.retrieval.versions import sort_key

_LETTERS_THAT_TELL = 5
_VENDORED = re.compile(r"\._?(?:packages|vendor(?:ed)?|extern(?:als?)?|third_party)\.")
_ONE_OF_MANY = 4
"""More rows with one summary than this, and the summary says nothing about any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """An API that takes the place of another."""

    name: str
    evidence: str
    """A sentence."""
    others: tuple[str, ...] = ()
    """More that are named beside it, of which one is to be chosen."""
    is_noted: bool = False
    """Whether the evidence cites release notes."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of which one is to be chosen."""
        return (self.name, *self.others)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What may take the place of an API: alternatives, each in spellings of which the first that exists counts."""

    alternatives: Sequence[Iterator[str]]
    evidence: str
    is_noted: bool = False


def find_replacement(
    index: VersionIndex,
    name: str,
    table: RenameTable,
    witness: VersionIndex | None = None,
    said: str = "",
    chronicle: VersionIndex | None = None,
) -> Replacement | None:
    """What to use in the version of `index` instead of `name`.

    Args:
        witness: a version that has the name; None if there is none.
        said: what the package says of its end, in any version.
        chronicle: a version whose release notes count as well.
    """
    for candidate in _candidates(index, name, table, witness, said, chronicle):
        known = [_first_usable(index, spellings, name, witness) for spellings in candidate.alternatives]
        if found := [full for full in dict.fromkeys(known) if full]:
            return Replacement(
                name=found[0], others=tuple(found[1:]), evidence=candidate.evidence, is_noted=candidate.is_noted
            )
    former = table.former_name(name, index.version)
    if former and look_up(index, former).verdict == PRESENT:
        return Replacement(name=former, evidence="That is what it was called before.")
    return None


def _one(name: str, evidence: str) -> _Candidate:
    return _Candidate([iter([name])], evidence)


def _candidates(
    index: VersionIndex,
    name: str,
    table: RenameTable,
    witness: VersionIndex | None,
    said: str,
    chronicle: VersionIndex | None,
) -> Iterator[_Candidate]:
    for others in advised(said):
        spellings = [
            spelled_out(index, name, table.spelled_out(other), anywhere=_is_name(other, said)) for other in others
        ]
        yield _Candidate(spellings, f"{index.package} says of {name}: {said}")
    for where in dict.fromkeys((index, witness, chronicle)):
        for others, note in replacements_noted(where, name) if where is not None else ():
            spellings = [spelled_out(index, name, other, anywhere=True) for other in others]
            yield _Candidate(spellings, cited(index, note), is_noted=True)
    if witness is not None:
        yield from _by_witness(index, name, witness)
    if witness is not None and sort_key(witness.version) > sort_key(index.version):
        for other, note in formers_noted(witness, name):
            yield _Candidate([spelled_out(index, name, other, anywhere=True)], cited(witness, note), is_noted=True)
    removal = table.removal(name, index.version)
    if removal and removal[1]:
        yield _one(removal[1], f"The release notes of {index.package} {removal[0]} say so.")
    if witness is not index:  # of what is there, only what the package says counts
        yield from _guesses(index, name, row_of(witness, name) if witness is not None else None)
        if (other_row := find_renamed(index, name, table)) is not None:
            yield _one(index.public(other_row), "Its module was renamed.")


def _is_name(other: str, said: str) -> bool:
    """Whether it cannot be a plain word of the sentence."""
    return not other.isalpha() or not other.islower() or bool(re.search(rf"[`'\"]~?{re.escape(other)}", said))


def _by_witness(index: VersionIndex, name: str, witness: VersionIndex) -> Iterator[_Candidate]:
    """What a version that has the name knows of the object."""
    where = f"{witness.package} {witness.version}"
    if home := look_up(witness, name).home:
        yield _one(home, f"In {where} it is that.")
    if (row := row_of(witness, name)) is None:
        return
    if row.home.startswith("builtins."):
        yield _one(row.home.removeprefix("builtins."), f"In {where} it is Python's own.")
    elif row.home and not row.home.startswith(f"{witness.package}."):
        yield _one(row.home, f"In {where} it is that.")
    for other in sorted(row.names, key=_length):
        yield _one(other, f"In {where} it is the same object as {name}.")
    if row.calls:
        spellings = spelled_out(index, name, row.calls.removeprefix("self."), anywhere=False)
        yield _Candidate([spellings], f"In {where} {name} does nothing but call {row.calls}.")
    if witness is not index:
        yield from _by_documentation(index, name, row, witness)


def _guesses(index: VersionIndex, name: str, row: CorpusRow | None) -> Iterator[_Candidate]:
    yield from _by_spelling(index, name, row)
    yield from _of_that_name(index, name)


def _by_spelling(index: VersionIndex, name: str, row: CorpusRow | None) -> Iterator[_Candidate]:
    """numpy.NaN is numpy.nan, numpy.round_ is numpy.round; only what is of the same kind."""
    parent, _, last = name.rpartition(".")
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower()
    for other in dict.fromkeys((last.lower(), last.rstrip("_"), f"{last}_", snake)):
        there = row_of(index, f"{parent}.{other}") if parent and other and other != last else None
        if there is not None and row is not None and there.type == row.type:
            yield _one(f"{parent}.{other}", "It is the same name, spelled otherwise.")


def _of_that_name(index: VersionIndex, name: str) -> Iterator[_Candidate]:
    """The only thing of that name in another module; or beside it, the only one whose name begins or ends so."""
    parent, _, last = name.rpartition(".")
    if len(last) < _LETTERS_THAT_TELL:
        return
    if not is_class(index, parent):
        where = f"{index.package} {index.version}"
        places = index.rows_ending_in(last)
        if len(places) == 1 and _is_of_module(index, index.row(places[0]), last):
            yield _one(index.public(places[0]), f"It is all that {where} has of the name {last}.")
    found = look_up(index, parent)
    members = index.row(found.row).members if found.row is not None else ()
    like = [one for one in members if one != last and (one.endswith(f"_{last}") or one.startswith(f"{last}_"))]
    if len(like) == 1:
        yield _one(f"{parent}.{like[0]}", f"Nothing else in {parent} has a name like it.")


def _is_of_module(index: VersionIndex, row: CorpusRow, last: str) -> bool:
    """Whether a module that is not vendored has it under that name, and no class."""
    if _VENDORED.search(row.path):
        return False
    parents = [full.rpartition(".")[0] for full in row.names if full.endswith(f".{last}")]
    return any(is_module(index, parent) for parent in parents)


def _by_documentation(index: VersionIndex, name: str, row: CorpusRow, witness: VersionIndex) -> Iterator[_Candidate]:
    digest = summary_digest(row.doc)
    rows = index.rows_summarised_as(digest) if digest else []
    if len(rows) <= _ONE_OF_MANY:
        last = name.rpartition(".")[2]
        same = [place for place in rows if index.row(place).type == row.type]
        for place in sorted(same, key=lambda place: last not in index.public(place).split(".")):
            evidence = f"Its documentation begins as that of {name} does in {witness.package} {witness.version}."
            yield _one(index.public(place), evidence)
    if not row.doc:
        return
    last = name.rpartition(".")[2]
    ending = index.rows_ending_in(last)
    same = [place for place in ending if index.row(place).type == row.type and index.row(place).doc == row.doc]
    if len(same) == 1:
        evidence = f"Its documentation is that of {name} in {witness.package} {witness.version}."
        yield _one(index.public(same[0]), evidence)


def _first_usable(index: VersionIndex, spellings: Iterator[str], name: str, witness: VersionIndex | None) -> str:
    usable = (_in_place_of(index, other, name, witness) for other in spellings if other != name)
    return next(filter(None, usable), "")


def _in_place_of(index: VersionIndex, other: str, name: str, witness: VersionIndex | None) -> str:
    """What a candidate comes to: "" if it cannot stand in.

    That is the case if it is not there, is deprecated or private itself, is a part of what is replaced or the whole of
    it, or is a module for what is none: then what has the same name in it may do.
    """
    if f"{other}.".startswith(f"{name}.") or name.startswith(f"{other}."):
        return ""
    if is_private(other) and not is_private(name):
        return ""
    if other.partition(".")[0] != index.package:
        return other
    found = look_up(index, other)
    if found.verdict != PRESENT or deprecation(index, found):
        return ""
    if found.home and found.row is None:
        return "" if is_private(found.home) else found.home
    if not is_module(index, other) or (witness is not None and is_module(witness, name)):
        return other
    inside = f"{other}.{name.rpartition('.')[2]}"
    return inside if inside != name and look_up(index, inside).verdict == PRESENT else ""


def _length(name: str) -> tuple[int, int, str]:
    return name.count("."), len(name), name
