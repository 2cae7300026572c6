"""`Facts` from a corpus folder."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Iterator, Sequence

from parallelmind.retrieval.absence import Absence, explain_absence
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.deprecation import is_of_a_part, named_replacement
from parallelmind.retrieval.existence import ABSENT, PRESENT, Existence, look_up
from parallelmind.retrieval.facts import Change, Parameter, ParameterKind, Replacement, Verdict
from parallelmind.retrieval.matching import find_exact
from parallelmind.retrieval.namespaces import Namespace
from parallelmind.retrieval.renames import RenameTable, load_renames
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex

_KEPT = 65_536
_KINDS: Sequence[ParameterKind] = (
    "positional only", "positional or keyword", "any positional", "keyword only", "any keyword",
)  # fmt: skip
"""By number, as in `inspect.Parameter`."""
_PLAIN_BASES = frozenset(
    [f"builtins.{name}" for name, value in vars(builtins).items() if isinstance(value, type)]
    + ["abc.ABC", "typing.Generic", "typing.Protocol"]
    + [f"enum.{name}" for name in ("Enum", "IntEnum", "StrEnum", "ReprEnum", "Flag", "IntFlag")]
)
"""Classes of Python whose instances have nothing more."""


class CorpusFacts:
    """Looks names up in a store, and remembers the answers."""

    def __init__(self, store: CorpusStore, *, renames: RenameTable | None = None) -> None:
        self._store = store
        self._renames = renames or load_renames()
        self._known = functools.lru_cache(_KEPT)(self._look_up)

    def lookup(self, package: str, version: str, name: str, *, of_instance: bool = False) -> Verdict:
        """See `Facts.lookup`."""
        return self._known(package, version, name, of_instance)

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        """See `Facts.diff`; here by names alone."""
        before, after = self._store.index(package, old), self._store.index(package, new)
        names = {index.public(row) for index in (before, after) for row in range(index.rows)}
        changes = [change for name in names if (change := self._change(name, before, after))]
        return sorted(changes, key=lambda change: (change.name, change.kind))

    def _look_up(self, package: str, version: str, name: str, of_instance: bool) -> Verdict:
        index = self._store.index(package, version)
        found = look_up(index, name)
        if found.verdict == PRESENT:
            return self._present(index, found, name)
        if found.verdict == ABSENT and not (of_instance and self._may_be_of_instances(index, name)):
            absence = explain_absence(self._store, index, name, found, self._renames)
            evidence = found.evidence.removesuffix(".") + _elsewhere(absence, package)
            return Verdict(status="absent", name=name, evidence=evidence, replacement=_replacement(absence))
        more = "; its instances may have more" if found.verdict == ABSENT else ""
        evidence = found.evidence.removesuffix(".") + more
        return Verdict(status="unknown", name=name, evidence=evidence)

    def _present(self, index: VersionIndex, found: Existence, name: str) -> Verdict:
        row = None if found.row is None else index.row(found.row)
        note = found.deprecated or (row.deprecated if row is not None and not is_of_a_part(row.deprecated) else "")
        return Verdict(
            status="present",
            name=name,
            evidence=found.evidence.removesuffix("."),
            row=row,
            deprecated=note,
            replacement=self._named(index, note, name),
            parameters=None if row is None else _parameters(row),
        )

    def _may_be_of_instances(self, index: VersionIndex, name: str) -> bool:
        """Whether instances may have what their class does not: by `__getattr__`, or set where nobody looked."""
        space = _namespace(index, name.split(".")[:-1])
        if space is None or space.kind != "class" or space.dynamic:
            return True
        return not all(_is_seen_through(index, part) for part in _parts(index, space))

    def _named(self, index: VersionIndex, note: str, name: str) -> Replacement | None:
        if not (other := named_replacement(note)):
            return None
        parents = name.split(".")[:-1]
        for length in range(len(parents), -1, -1):
            full = ".".join([*parents[:length], other])
            if full != name and find_exact(index, full) is not None:
                return Replacement(full, f"the note on the deprecation of {name}")
        return None

    def _change(self, name: str, before: VersionIndex, after: VersionIndex) -> Change | None:
        was, now = look_up(before, name), look_up(after, name)
        old, new = f"{before.package} {before.version}", f"{after.package} {after.version}"
        if now.verdict == PRESENT and was.verdict == ABSENT:
            return Change(kind="added", name=name, evidence=was.evidence)
        if was.verdict != PRESENT:
            return None
        if now.verdict == ABSENT:
            moved = explain_absence(self._store, after, name, now, self._renames).moved_to or ""
            return Change(kind="moved" if moved else "removed", name=name, new_name=moved, evidence=now.evidence)
        if now.verdict != PRESENT or was.row is None or now.row is None:
            return None
        former, present = self._present(before, was, name), self._present(after, now, name)
        if present.deprecated and not former.deprecated:
            return Change(kind="deprecated", name=name, evidence=f"{new} says: {present.deprecated}")
        if None not in (former.parameters, present.parameters) and former.parameters != present.parameters:
            signatures = before.row(was.row).signature, after.row(now.row).signature
            return Change(kind="signature", name=name, evidence=f"{signatures[0]} in {old}, {signatures[1]} in {new}")
        return None


def _namespace(index: VersionIndex, components: list[str]) -> Namespace | None:
    """What a dotted name leads to, if that has a namespace."""
    for length in range(len(components), 0, -1):
        if (start := index.module(".".join(components[:length]))) is None:
            continue
        space: Namespace | None = index.namespace(start)
        for component in components[length:]:
            target = next((part.names[component] for part in _parts(index, space) if component in part.names), "")
            space = index.namespace(int(target[1:])) if target[:1] == "s" else None
        if space is not None:
            return space
    return None


def _is_seen_through(index: VersionIndex, space: Namespace) -> bool:
    """Whether all is known that a class sets on its instances.

    What its methods set was read where it says that it is defined, which need not be where it is.
    """
    row = index.object_row(space.object) if space.object is not None else None
    if row is None:
        return space.name in _PLAIN_BASES
    return index.row(row).path == space.name


def _parts(index: VersionIndex, space: Namespace | None) -> Iterator[Namespace]:
    if space is not None:
        yield space
        yield from map(index.namespace, space.bases)


def _parameters(row: CorpusRow) -> tuple[Parameter, ...] | None:
    if row.parameters is None:
        return None
    return tuple(Parameter(name, _KINDS[kind], can_be_left_out) for name, kind, can_be_left_out in row.parameters)


def _elsewhere(absence: Absence, package: str) -> str:
    if absence.removed_in:
        return f"; it was removed in {package} {absence.removed_in}"
    if absence.last_version:
        return f"; {package} {absence.last_version} had it"
    return f"; {package} {absence.next_version} has it, a later version" if absence.next_version else ""


def _replacement(absence: Absence) -> Replacement | None:
    if not absence.moved_to:
        return None
    source = absence.note or ("the table of removed names" if absence.removed_in else "it has the same documentation")
    return Replacement(absence.moved_to, source)
