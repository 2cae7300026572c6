"""`Facts` from a corpus folder."""

from __future__ import annotations

import functools
import re

from parallelmind.retrieval.absence import Absence, absent_by_parent, absent_elsewhere
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.deprecation import deprecation_note, named_replacement
from parallelmind.retrieval.facts import Change, Parameter, Replacement, Verdict
from parallelmind.retrieval.matching import find_exact
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.renames import RenameTable, load_renames
from parallelmind.retrieval.signatures import parse_parameters
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex

_KEPT = 65_536
_DUNDER = re.compile(r"__\w+__")
_METHODS = ("method", "function")
_CALL = re.compile(r"[\w.]*\w\(")


class CorpusFacts:
    """Looks names up in a store, and remembers the answers."""

    def __init__(self, store: CorpusStore, *, ranker: Ranker | None = None, renames: RenameTable | None = None) -> None:
        self._store = store
        self._ranker = ranker or Ranker()
        self._renames = renames or load_renames()
        self._known = functools.lru_cache(_KEPT)(self._look_up)

    def lookup(self, package: str, version: str, name: str, *, of_instance: bool = False) -> Verdict:
        """See `Facts.lookup`."""
        return self._known(package, version, name, of_instance)

    def diff(self, package: str, old: str, new: str) -> list[Change]:
        """See `Facts.diff`; here by names alone."""
        before, after = self._store.index(package, old), self._store.index(package, new)
        names = {name for name, _ in before.all_names()} | {name for name, _ in after.all_names()}
        # Of a re-exported object, and of what is below it, one name is enough.
        changes = {change.name: change for name in names if (change := self._change(name, before, after))}
        return sorted(changes.values(), key=lambda change: (change.name, change.kind))

    def _look_up(self, package: str, version: str, name: str, of_instance: bool) -> Verdict:
        index = self._store.index(package, version)
        if (place := find_exact(index, name)) is not None:
            return self._present(index, index.row(place), name)
        where = f"{package} {version}"
        if not _DUNDER.fullmatch(name.rpartition(".")[2]) and (absence := self._absence(index, name, of_instance)):
            return Verdict(
                status="absent",
                name=name,
                evidence=_evidence(absence, where),
                replacement=_replacement(absence),
            )
        return Verdict(status="unknown", name=name, evidence=f"nothing proves that {where} has or lacks {name}")

    def _present(self, index: VersionIndex, row: CorpusRow, name: str) -> Verdict:
        note = deprecation_note(row.doc)
        return Verdict(
            status="present",
            name=name,
            evidence=f"the corpus of {index.package} {index.version} has it as {row.path}",
            row=row,
            deprecated=note,
            replacement=self._named(index, note, name),
            parameters=_parameters(index, row),
        )

    def _absence(self, index: VersionIndex, name: str, of_instance: bool) -> Absence | None:
        found = absent_elsewhere(self._store, index, self._ranker.keywords(index), name, self._renames)
        if not of_instance:
            return found or absent_by_parent(index, name)
        # A class says nothing about attributes that its instances get; another version may know it as a method.
        other = (found.last_version or found.next_version) if found else None
        if other is None:
            return None
        witness = self._store.index(index.package, other)
        place = find_exact(witness, name)
        return found if place is not None and witness.row(place).type in _METHODS else None

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
        was, now = find_exact(before, name), find_exact(after, name)
        old, new = f"{before.package} {before.version}", f"{after.package} {after.version}"
        if was is None and now is not None:
            public = after.public(now)
            return Change(kind="added", name=name, evidence=f"{old} has no such name") if public == name else None
        if was is None or before.public(was) != name:
            return None
        former = before.row(was)
        if now is None:
            moved = self._absence(after, name, of_instance=False)
            if moved is not None and moved.moved_to:
                return Change(kind="moved", name=name, new_name=moved.moved_to, evidence=_evidence(moved, new))
            return Change(kind="removed", name=name, evidence=f"{new} has no such name")
        present = after.row(now)
        if (note := deprecation_note(present.doc)) and not deprecation_note(former.doc):
            return Change(kind="deprecated", name=name, evidence=f"{new} says: {note}")
        then, today = _parameters(before, former), _parameters(after, present)
        if then is not None and today is not None and then != today:
            return Change(
                kind="signature", name=name, evidence=f"{former.signature} in {old}, {present.signature} in {new}"
            )
        return None


def _parameters(index: VersionIndex, row: CorpusRow) -> tuple[Parameter, ...] | None:
    """Only of signatures that the running package gave: those in docstrings and stubs leave things out."""
    if not index.inspected or row.source == "add_newdoc" or "= ..." in row.signature:
        return None
    if _CALL.match(row.doc.lstrip()):
        return None
    return parse_parameters(row.signature, of_method=row.type == "method")


def _evidence(absence: Absence, where: str) -> str:
    package = where.partition(" ")[0]
    if absence.evidence == "parent":
        return f"{absence.parent} of {where} was imported, and has no such member"
    if absence.removed_in:
        return f"it was removed in {package} {absence.removed_in}"
    if absence.last_version:
        return f"{package} {absence.last_version} has it, {where} does not"
    return f"only {package} {absence.next_version} has it, which is newer"


def _replacement(absence: Absence) -> Replacement | None:
    if not absence.moved_to:
        return None
    source = absence.note or ("the table of removed names" if absence.removed_in else "it has the same documentation")
    return Replacement(absence.moved_to, source)
