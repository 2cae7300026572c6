"""Evidence that an API does not exist in a version, from other versions, from the rename table, or from its parent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from parallelmind.retrieval.corpus_rows import summary
from parallelmind.retrieval.keyword_search import KeywordSearch
from parallelmind.retrieval.matching import find_exact, find_renamed, nearest_ancestor
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex
from parallelmind.retrieval.versions import sort_key

_DEPRECATION = re.compile(
    r"^\s*(?:\.\. deprecated::|\.\. versionremoved::|deprecated since|\W*deprecated\b).*", re.I | re.M
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """An API that a version does not have, and how that is known."""

    evidence: str
    """`other_version`, `removal_table` or `parent`."""
    last_version: str | None = None
    """The newest older version in the corpus that has it."""
    next_version: str | None = None
    """The oldest newer version in the corpus that has it."""
    moved_to: str | None = None
    """What takes its place in the version asked for."""
    removed_in: str | None = None
    parent: str | None = None
    note: str = ""
    """What the older version's documentation says about its end."""

    def fields(self) -> dict[str, Any]:
        """The fields that are stored in a context row."""
        known = {"removed_in": self.removed_in, "parent": self.parent}
        return {
            "evidence": self.evidence,
            "last_version": self.last_version,
            "next_version": self.next_version,
            "moved_to": self.moved_to,
        } | {name: value for name, value in known.items() if value}


def absent_elsewhere(
    store: CorpusStore, index: VersionIndex, keywords: KeywordSearch, name: str, table: RenameTable
) -> Absence | None:
    """Evidence from other versions in the corpus or from the table; None if there is none that can be relied on.

    `name` is known not to be among the names of `index`. A version that was never inspected at run time may lack names
    of compiled modules: there a missing name counts only below a class, or if the documentation never says the word.
    """
    removal = table.removal(name, index.version)
    older, newer = _versions_with(store, index, name)
    if removal is None and (not (older or newer) or not _is_reliable(index, keywords, name)):
        return None
    witness = older or newer
    moved_to = removal[1] if removal else None
    return Absence(
        evidence="other_version" if witness else "removal_table",
        last_version=older.version if older else None,
        next_version=newer.version if newer else None,
        moved_to=moved_to or _moved_to(index, name, table, witness),
        removed_in=removal[0] if removal else None,
        note=_deprecation_note(older, name) if older else "",
    )


def absent_by_parent(index: VersionIndex, name: str) -> Absence | None:
    """Evidence from the parent alone: it was inspected at run time, and has no such member.

    Not for private names, and not where the parent's documentation speaks of the member, as it does of the attributes
    that instances get.
    """
    if not index.inspected or (found := nearest_ancestor(index, name)) is None:
        return None
    row, missing = found
    parent = index.row(row)
    if parent.type not in ("module", "class") or missing.startswith("_") or missing in parent.members:
        return None
    if re.search(rf"\b{re.escape(missing)}\b", parent.doc):
        return None
    return Absence(evidence="parent", parent=index.public(row))


def _versions_with(
    store: CorpusStore, index: VersionIndex, name: str
) -> tuple[VersionIndex | None, VersionIndex | None]:
    """The nearest older and the nearest newer version that have the name."""
    asked = sort_key(index.version)
    versions = store.versions(index.package)
    older = [version for version in reversed(versions) if sort_key(version) < asked]
    newer = [version for version in versions if sort_key(version) > asked]
    return tuple(  # type: ignore[return-value]
        next(
            (other for version in group if find_exact(other := store.index(index.package, version), name) is not None),
            None,
        )
        for group in (older, newer)
    )


def _is_reliable(index: VersionIndex, keywords: KeywordSearch, name: str) -> bool:
    if index.inspected:
        return True
    ancestor = nearest_ancestor(index, name)
    if ancestor and index.row(ancestor[0]).type == "class":
        return True
    return not keywords.has_word(name.rpartition(".")[2])


def _moved_to(index: VersionIndex, name: str, table: RenameTable, witness: VersionIndex | None) -> str | None:
    row = find_renamed(index, name, table)
    if row is None and (former := table.former_name(name, index.version)):
        row = find_exact(index, former)
    if row is None and witness is not None:
        row = _same_documentation(index, name, witness)
    return None if row is None else index.public(row)


def _same_documentation(index: VersionIndex, name: str, witness: VersionIndex) -> int | None:
    """The row with the same last component, kind and summary as the other version documents for `name`."""
    place = find_exact(witness, name)
    assert place is not None
    there = witness.row(place)
    wanted = summary(there.doc)
    if not wanted:
        return None
    for row in index.rows_ending_in(name.rpartition(".")[2]):
        here = index.row(row)
        if here.type == there.type and summary(here.doc) == wanted:
            return row
    return None


def _deprecation_note(older: VersionIndex, name: str) -> str:
    row = find_exact(older, name)
    assert row is not None
    doc = older.row(row).doc
    found = _DEPRECATION.search(doc)
    if found is None:
        return ""
    return " ".join(doc[found.start() :].strip().split("\n\n")[0].split())
