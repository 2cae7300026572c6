"""What else is known of an API that a version does not have: which versions had it, and what takes its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from parallelmind.retrieval.existence import PRESENT, UNKNOWN, Existence, deprecation, look_up
from parallelmind.retrieval.noted import end_noted
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.replacement import Replacement, find_replacement
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex
from parallelmind.retrieval.versions import sort_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """An API that a version does not have, and how that is known."""

    evidence: str
    """What was asked, and did not have it: a sentence."""
    parent: str | None = None
    """The nearest thing above it that is there."""
    last_version: str | None = None
    """The newest older version in the corpus that has it."""
    next_version: str | None = None
    """The oldest newer version in the corpus that has it."""
    instead: Replacement | None = None
    """What takes its place in the version asked for."""
    removed_in: str | None = None
    note: str = ""
    """What the package says about its end: this version, or the older one."""
    noted: str = ""
    """What its release notes say of that: a sentence."""

    @property
    def moved_to(self) -> str | None:
        """The name of what takes its place."""
        return self.instead.name if self.instead else None

    @property
    def moved_because(self) -> str:
        """How that is known: a sentence; "" if nothing is."""
        return self.instead.evidence if self.instead else ""

    @property
    def is_known_elsewhere(self) -> bool:
        """Whether it is, or was, the name of something: no misspelling."""
        return bool(self.last_version or self.next_version or self.removed_in or self.noted)

    def fields(self) -> dict[str, Any]:
        """The fields that are stored in a context row."""
        known: dict[str, Any] = {
            "removed_in": self.removed_in,
            "parent": self.parent,
            "moved_because": self.moved_because,
            "alternatives": list(self.instead.others) if self.instead else [],
            "noted": self.noted,
        }
        return {
            "evidence": self.evidence,
            "last_version": self.last_version,
            "next_version": self.next_version,
            "moved_to": self.moved_to,
        } | {name: value for name, value in known.items() if value}


def settled(found: Existence, absence: Absence) -> Existence:
    """Unknown instead of absent, where instances may make the name and no version is known to have had it."""
    if not found.may_be_made or absence.is_known_elsewhere:
        return found
    evidence = f"{found.evidence} Instances may answer for more names, by their __getattr__."
    return replace(found, verdict=UNKNOWN, evidence=evidence, verified=False)


def explain_absence(
    store: CorpusStore, index: VersionIndex, name: str, found: Existence, table: RenameTable
) -> Absence:
    """All that the corpus and the table know about a name that is `found` to be absent."""
    removal = table.removal(name, index.version)
    older, newer = versions_with(store, index, name)
    note = found.deprecated or (deprecation(older, look_up(older, name)) if older else "")
    chronicle = index if index.has_notes else _with_notes(store, index)
    other = find_replacement(index, name, table, older or newer, note, chronicle)
    gone = _up_to(name, found.missing)
    return Absence(
        evidence=found.evidence,
        parent=index.public(found.parent) if found.parent is not None else None,
        last_version=older.version if older else None,
        next_version=newer.version if newer else None,
        instead=other,
        removed_in=removal[0] if removal else None,
        note=note,
        noted=next(filter(None, (end_noted(told, gone) for told in (chronicle, older) if told is not None)), ""),
    )


def versions_with(
    store: CorpusStore, index: VersionIndex, name: str
) -> tuple[VersionIndex | None, VersionIndex | None]:
    """The nearest older and the nearest newer version that have the name."""
    asked = sort_key(index.version)
    versions = store.versions(index.package)
    older = [version for version in reversed(versions) if sort_key(version) < asked]
    newer = [version for version in versions if sort_key(version) > asked]
    return _first_with(store, index.package, older, name), _first_with(store, index.package, newer, name)


def _up_to(name: str, missing: str) -> str:
    """The beginning of a name that ends with the component which is not there: the module that is gone."""
    components = name.split(".")
    return ".".join(components[: components.index(missing) + 1]) if missing in components else name


def _with_notes(store: CorpusStore, index: VersionIndex) -> VersionIndex | None:
    """The nearest older version with release notes: those of this one may be missing from its source archive."""
    asked = sort_key(index.version)
    older = [each for each in reversed(store.versions(index.package)) if sort_key(each) < asked]
    return next((told for each in older if (told := store.index(index.package, each)).has_notes), None)


def _first_with(store: CorpusStore, package: str, versions: list[str], name: str) -> VersionIndex | None:
    indexes = (store.index(package, version) for version in versions)
    return next((index for index in indexes if look_up(index, name).verdict == PRESENT), None)
