"""Whether a version has a name: present, absent or unknown, and how that is known.

Present and absent are what `getattr` answered when the package was built into the corpus. Where it could not be asked,
a name that the files have is present without proof, and one that they do not have is unknown, never absent.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from parallelmind.retrieval.matching import find_exact, nearest_ancestor
from parallelmind.retrieval.namespaces import ANY, SOME, Namespace
from parallelmind.retrieval.version_index import VersionIndex

Verdict = Literal["present", "absent", "unknown"]
PRESENT: Verdict = "present"
ABSENT: Verdict = "absent"
UNKNOWN: Verdict = "unknown"

_OF_ALL = {
    "module": frozenset(dir(types.ModuleType)),
    "class": frozenset(dir(type)) | frozenset(dir(object)),
    "instance": frozenset(dir(object)) | {"__dict__", "__module__"},
}
_SECTION = re.compile(
    r"^[ \t]*Attributes[ \t]*(?:\n[ \t]*-{3,}[ \t]*\n|:[ \t]*\n)(.*?)(?=\n[^\n]+\n[ \t]*-{3,}|\Z)", re.M | re.S
)
_LISTED = re.compile(r"^[ \t]*(\w+(?:, *\w+)*)[ \t]*(?::|\(|$)", re.M)
_FIELD = re.compile(r":(?:i|c)?var[ \t]+(?:[^:\n]*[ \t])?(\w+):|\.\.[ \t]+attribute::[ \t]+(?:\w+\.)*(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Existence:
    """What is known about a name in one version."""

    verdict: Verdict
    evidence: str
    """A sentence."""
    verified: bool = False
    """Whether the running package was asked."""
    row: int | None = None
    """The row that documents it."""
    parent: int | None = None
    """The row of the nearest thing above it that is there, where it has no row of its own."""
    home: str = ""
    """Where another package defines it; "" if none does, or it has a row."""
    missing: str = ""
    """The component that is not there."""
    deprecated: str = ""
    """What the package says of its end, when the name is asked for."""
    may_be_made: bool = False
    """Of what is absent: instances there have a `__getattr__`, which may make names that nobody can try out."""


def look_up(index: VersionIndex, name: str) -> Existence:
    """What is known about a dotted name.

    Several ways may lead along it (`tqdm.tqdm` is a function and a module): it is there if one of them finds it.
    """
    row = find_exact(index, name)
    if not index.python:
        return _by_files(index, name, row)
    found: Existence | None = None
    components = name.split(".")
    for length in range(1, len(components) + 1):
        space = index.module(".".join(components[:length]))
        if space is not None:
            new = _Walk(index, components, length).run(space)
            if new.verdict == PRESENT:
                return new if new.row is not None else replace(new, row=row)
            if found is None or new.verdict == UNKNOWN or found.verdict == ABSENT:
                found = new
    if found is None:
        return _by_files(index, name, row)
    if row is not None:
        return _unconfirmed(index, name, row, found)
    return found


def look_up_beside(
    index: VersionIndex, name: str, beside: Callable[[str], VersionIndex | None]
) -> tuple[VersionIndex, str, Existence]:
    """What is known, and of which name in which package: where a name leads to another package, it goes on there.

    Args:
        beside: the version of another package that belongs to this one; None if there is none.
    """
    found = look_up(index, name)
    if found.home and found.row is None and (other := beside(found.home.partition(".")[0])) is not None:
        there = look_up(other, found.home)
        if there.row is not None or (found.verdict == UNKNOWN and there.verdict != UNKNOWN):
            return other, found.home, there
    return index, name, found


def deprecation(index: VersionIndex, found: Existence) -> str:
    """What a version says about the end of what was found; "" if nothing."""
    return found.deprecated or (index.row(found.row).deprecated if found.row is not None else "")


def find_namespace(index: VersionIndex, name: str) -> Namespace | None:
    """What a dotted name leads to, if that has names below it."""
    components = name.split(".")
    for length in range(len(components), 0, -1):
        if (start := index.module(".".join(components[:length]))) is None:
            continue
        space: Namespace | None = index.namespace(start)
        for component in components[length:]:
            parts = looked_through(index, space) if space is not None else ()
            target = next((part.names[component] for part in parts if component in part.names), "")
            space = index.namespace(int(target[1:])) if target[:1] == "s" else None
        if space is not None:
            return space
    return None


def looked_through(index: VersionIndex, space: Namespace) -> Iterator[Namespace]:
    """The namespaces that `getattr` looks through, in order."""
    yield space
    for number in (*space.bases, *space.meta):
        yield index.namespace(number)


def _by_files(index: VersionIndex, name: str, row: int | None) -> Existence:
    where = f"{index.package} {index.version}"
    if row is not None:
        return Existence(
            verdict=PRESENT, evidence=f"The files of {where} have it; they were read and not run.", row=row
        )
    above = nearest_ancestor(index, name)
    return Existence(
        verdict=UNKNOWN,
        evidence=f"The files of {where}, which were read and not run, do not show {name}.",
        parent=above[0] if above else None,
        missing=above[1] if above else "",
    )


def _unconfirmed(index: VersionIndex, name: str, row: int, found: Existence) -> Existence:
    """Its files have it, and asking did not find it: it may be for other systems, or for type checkers."""
    if found.verdict == UNKNOWN:
        where = f"{index.package} {index.version}"
        return Existence(verdict=PRESENT, evidence=f"The files of {where} have it. {found.evidence}", row=row)
    return Existence(
        verdict=UNKNOWN,
        evidence=f"The files of {index.package} {index.version} have it, and yet: {found.evidence}",
        row=row,
        missing=found.missing,
    )


class _Walk:
    """From a module along the rest of a dotted name."""

    def __init__(self, index: VersionIndex, components: list[str], place: int) -> None:
        self._index, self._components, self._place = index, components, place
        self._row: int | None = None
        self._parent: int | None = None
        self._said = ""

    def run(self, start: int) -> Existence:
        number: int | None = start
        for place in range(self._place, len(self._components)):
            self._place = place
            assert number is not None
            space = self._index.namespace(number)
            self._row = self._row_of(space)
            self._parent = self._parent if self._row is None else self._row
            step = self._step(space, self._components[self._place])
            if isinstance(step, Existence):
                return step
            kind, value = step[0], step[1:]
            if kind == "s":
                number = int(value)
                continue
            self._row = self._index.object_row(int(value)) if kind == "o" else None
            self._place += 1
            return self._leaf(value if kind == "=" else "")
        assert number is not None
        space = self._index.namespace(number)
        row = self._row_of(space)
        if row is None:
            row = self._index.find(self._name(len(self._components)))
        more = f"It is an instance of {space.name}." if row is None and space.kind == "instance" and space.name else ""
        return self._present(row, more)

    def _step(self, space: Namespace, component: str) -> Existence | str:
        """Where a component leads, or what is known if it leads nowhere."""
        for part in looked_through(self._index, space):
            target = part.names.get(component)
            if target is None:
                continue
            self._said = part.said.get(component, "")
            if component in space.raises:
                return self._unknown(f"{self._above()} lists {component}, and raises an error when it is asked for")
            return target or "-"
        return self._not_there(space, component)

    def _not_there(self, space: Namespace, component: str) -> Existence | str:
        above, version = self._above(), f"Python {self._index.python}"
        if component in _OF_ALL[space.kind]:
            return "-"
        if component in space.files:
            name = self._name(self._place + 1)
            error = self._index.import_error(name)
            return self._unknown(f"{name} was not imported{f' ({error})' if error else ''}")
        if space.kind != "module" and any(component in part.instance for part in looked_through(self._index, space)):
            if self._place + 1 == len(self._components):
                return self._present(None, f"Instances of {above} have it; the class itself has not.")
            return self._unknown(f"{component} is an attribute of instances of {above}")
        if said := _one_line(space.refused.get(component, "")):
            return Existence(
                verdict=ABSENT,
                evidence=f"{above}, as imported with {version}, has no {component}, and says: {said.rstrip('.')}.",
                verified=True,
                parent=self._row,
                missing=component,
                deprecated=said,
            )
        if space.open == ANY:
            if self._place + 1 == len(self._components):
                return self._present(None, f"{above} answers for every name, by its __getattr__.")
            return self._unknown(f"{above} answers for every name, by its __getattr__")
        if space.open == SOME:
            return self._unknown(f"{above} may answer for more names than could be tried")
        if self._place + 1 < len(self._components) and find_exact(self._index, self._name(self._place + 1)) is not None:
            return self._unknown(f"The files have {self._name(self._place + 1)}, and it was not there with {version}")
        if space.kind != "module" and any(component in documented_names(doc) for doc in self._docs(space)):
            return self._unknown(f"The documentation of {above} speaks of {component}, and the class does not have it")
        asked = f", and its __getattr__, tried with {space.asked:,} names, knows no other" if space.asked else ""
        own = "and its bases have" if space.kind == "class" and space.bases else "has"
        bases = map(self._index.namespace, space.bases)
        of_class = space.kind == "class" and any(part.dynamic for part in (space, *bases))
        return Existence(
            verdict=ABSENT,
            evidence=f"{above}, as imported with {version}, {own} no {component}{asked}.",
            verified=True,
            parent=self._row,
            missing=component,
            may_be_made=of_class or (space.kind == "instance" and space.asked > 0),
        )

    def _docs(self, space: Namespace) -> Iterator[str]:
        """The documentation of a class and its bases."""
        for part in looked_through(self._index, space):
            row = self._index.object_row(part.object) if part.object is not None else None
            if row is not None:
                yield self._index.row(row).doc

    def _leaf(self, home: str) -> Existence:
        """The name ends here, or goes on below something that has no namespace."""
        if self._place == len(self._components):
            return replace(self._present(self._row, f"It is {home}." if home else ""), home=home)
        component = self._components[self._place]
        above = self._above()
        if home:
            unknown = self._unknown(f"{above} is {home}, which is no part of {self._index.package}")
            return replace(unknown, home=".".join([home, *self._components[self._place :]]))
        row = self._index.row(self._row) if self._row is not None else None
        if row is not None and any(component == name for name, *_ in row.parameters or ()):
            return self._unknown(f"{component} is a parameter of {above}")
        return self._unknown(f"What {above} has below it was not asked")

    def _present(self, row: int | None, more: str = "") -> Existence:
        evidence = more or f"It was there when it was asked for with Python {self._index.python}."
        return Existence(
            verdict=PRESENT,
            evidence=evidence,
            verified=True,
            row=row,
            parent=self._parent if row is None else None,
            deprecated=self._said,
        )

    def _unknown(self, reason: str) -> Existence:
        component = self._components[min(self._place, len(self._components) - 1)]
        parent = self._parent if self._row is None else self._row
        return Existence(verdict=UNKNOWN, evidence=f"{reason}.", parent=parent, missing=component)

    def _row_of(self, space: Namespace) -> int | None:
        if space.object is not None and (row := self._index.object_row(space.object)) is not None:
            return row
        return self._index.find(space.name) if space.kind != "instance" else None

    def _name(self, length: int) -> str:
        return ".".join(self._components[:length])

    def _above(self) -> str:
        return self._name(self._place)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def documented_names(doc: str) -> set[str]:
    """The attributes that a class's documentation lists, by the conventions of numpy, Google and Sphinx."""
    names = {name for found in _FIELD.findall(doc) for name in found if name}
    for section in _SECTION.findall(doc):
        for listed in _LISTED.findall(section):
            names.update(part.strip() for part in listed.split(","))
    return names
