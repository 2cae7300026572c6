"""`Facts` from a corpus folder."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Sequence

from parallelmind.retrieval.absence import Absence, explain_absence, settled
from parallelmind.retrieval.changes import Change, compare
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import (
    ABSENT,
    PRESENT,
    Existence,
    deprecation,
    find_namespace,
    look_up,
    look_up_beside,
)
from parallelmind.retrieval.facts import Parameter, ParameterKind, Verdict
from parallelmind.retrieval.namespaces import Namespace
from parallelmind.retrieval.renames import RenameTable, load_renames
from parallelmind.retrieval.replacement import find_replacement
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

    def lookup(
        self, package: str, version: str, name: str, *, of_instance: bool = False, is_called: bool = False
    ) -> Verdict:
        """See `Facts.lookup`."""
        return self._known(package, version, name, of_instance, is_called)

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        """See `Facts.diff`."""
        return list(compare(self._store.index(package, old), self._store.index(package, new), self._renames))

    def _look_up(self, package: str, version: str, name: str, of_instance: bool, is_called: bool) -> Verdict:
        index = self._store.index(package, version)
        installed = self._store.installed_beside(package, version)[1]
        index, home, found = look_up_beside(
            index, name, lambda other: self._store.index(other, version) if other in installed else None
        )
        if found.verdict == PRESENT:
            return self._present(index, found, name)
        evidence = found.evidence.removesuffix(".")
        if found.verdict != ABSENT:
            return Verdict(status="unknown", name=name, evidence=evidence)
        absence = explain_absence(self._store, index, home, found, self._renames)
        if (found := settled(found, absence)).verdict != ABSENT:
            return Verdict(status="unknown", name=name, evidence=found.evidence.removesuffix("."))
        is_method = is_called and self._was_method(index.package, absence, home)
        if of_instance and not is_method and self._may_be_of_instances(index, home):
            return Verdict(status="unknown", name=name, evidence=f"{evidence}; its instances may have more")
        evidence += _elsewhere(absence, package)
        return Verdict(status="absent", name=name, evidence=evidence, replacement=absence.instead)

    def _present(self, index: VersionIndex, found: Existence, name: str) -> Verdict:
        row = None if found.row is None else index.row(found.row)
        note = deprecation(index, found)
        instead = find_replacement(index, name, self._renames, index, note) if note else None
        return Verdict(
            status="present",
            name=name,
            evidence=found.evidence.removesuffix("."),
            row=row,
            deprecated=note,
            replacement=instead,
            parameters=None if row is None else _parameters(row),
        )

    def _was_method(self, package: str, absence: Absence, name: str) -> bool:
        """Whether another version has the name as a method."""
        other = absence.last_version or absence.next_version
        if other is None:
            return False
        index = self._store.index(package, other)
        place = look_up(index, name).row
        return place is not None and index.row(place).type in ("method", "function")

    def _may_be_of_instances(self, index: VersionIndex, name: str) -> bool:
        """Whether instances may have what their class does not: by `__getattr__`, or set where nobody looked."""
        space = find_namespace(index, name.rpartition(".")[0])
        if space is None or space.kind != "class" or space.dynamic:
            return True
        bases = (index.namespace(number) for number in space.bases)
        return not all(_is_seen_through(index, part) for part in (space, *bases))


def _is_seen_through(index: VersionIndex, space: Namespace) -> bool:
    """Whether all is known that a class sets on its instances.

    What its methods set was read where it says that it is defined, which need not be where it is.
    """
    row = index.object_row(space.object) if space.object is not None else None
    if row is None:
        return space.name in _PLAIN_BASES
    return index.row(row).path == space.name


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
