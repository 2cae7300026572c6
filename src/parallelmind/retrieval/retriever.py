"""From a query to its context: the API itself, renamed, absent, one much like it, or ranked search, in that order."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Ge
from packaging.utils import canonicalize_name

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.absence import Absence, explain_absence, settled, versions_with
from parallelmind.retrieval.budget import TokenBudget
from parallelmind.retrieval.context_text import (
    Context,
    Document,
    absence_text,
    assemble,
    deprecated_text,
    document_text,
    presence_text,
)
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import ABSENT as IS_ABSENT
from parallelmind.retrieval.existence import PRESENT, UNKNOWN, Existence, deprecation, look_up, look_up_beside
from parallelmind.retrieval.matching import SimilarNames, find_exact, find_renamed, nearest_ancestor
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.ranking import Hit, Ranker
from parallelmind.retrieval.renames import RenameTable, load_renames
from parallelmind.retrieval.replacement import Replacement, find_replacement
from parallelmind.retrieval.store import CorpusStore, Resolved
from parallelmind.retrieval.version_index import VersionIndex
from parallelmind.settings.setting import Setting, Settings

EXACT, STRING, FALLBACK, ABSENT = METHODS = ("exact_api_match", "rag_string_match", "rag_fallback", "absent")
_SIMILAR_NAMED = 3
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RetrieverSettings(Settings):
    """How contexts are found and how long they may be."""

    max_documents: Annotated[
        int, Ge(1), Setting("at most this many documents in a context that was found by search", "context")
    ] = 10
    fixed_docs_per_query: Annotated[
        int,
        Ge(0),
        Setting("documents in such a context, the best first; 0: as many as --max_documents", "context"),
    ] = 1
    max_tokens: Annotated[int, Ge(0), Setting("at most this many tokens in a context; 0: no limit", "context")] = 4000
    enable_str_match: Annotated[
        bool, Setting("if no name is equal, try renamed modules and very similar names", "search")
    ] = False
    jump_exact_match: Annotated[bool, Setting("skip the exact match", "search")] = False

    include_source: Annotated[
        bool, Setting("also give source code, where the corpus still has the archive it was built from", "context")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fixed_docs_per_query > self.max_documents:
            raise SettingsError(
                f"--fixed_docs_per_query is {self.fixed_docs_per_query}, above --max_documents {self.max_documents}; "
                "raise that too."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """What was found for a query."""

    method: str
    context: Context
    absence: Absence | None = None
    existence: Existence | None = None
    """What is known of the API that was asked for; None if the query names none, or not in which package it is."""
    instead: Replacement | None = None
    """What to use in place of an API that is absent or deprecated."""
    unserved: dict[str, str] = field(default_factory=dict)
    """Dependencies that the corpus lacks, and that this query could do without."""


@dataclass(frozen=True, slots=True)
class _Found:
    method: str
    hits: Sequence[tuple[Hit, str]]
    """Rows with the names to show, the best first."""
    absence: Absence | None = None
    preface: str = ""
    """What is known of the API, before all documents."""
    preface_of: Document | None = None
    """The API, if that is all there is of it."""
    title: str = ""
    """What stands before each document, to say what it is."""
    existence: Existence | None = None
    instead: Replacement | None = None


class Retriever:
    """Answers queries from one corpus; one per process."""

    def __init__(
        self,
        store: CorpusStore,
        settings: RetrieverSettings,
        *,
        ranker: Ranker | None = None,
        budget: TokenBudget | None = None,
        renames: RenameTable | None = None,
    ) -> None:
        """Without a `budget`, `max_tokens` must be 0."""
        assert budget or not settings.max_tokens
        self._store = store
        self._settings = settings
        self._ranker = ranker or Ranker()
        self._budget = budget
        self._renames = renames or load_renames()
        self._told: set[str] = set()
        self._similar: weakref.WeakKeyDictionary[VersionIndex, SimilarNames] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Close the corpus."""
        self._store.close()

    def retrieve(self, query: Query) -> Retrieval:
        """The context of a query.

        Raises:
            DataError: the query is wrong, or the corpus lacks a version that it needs.
        """
        if query.error:
            raise DataError(query.error)
        resolved = self._store.resolve(query.dependencies)
        name = self._renames.spelled_out(query.target_api)
        if (missing := self._without_module(name, resolved)) is not None:
            found = missing
        elif owner := self._owner(name, resolved):
            found = self._find(self._store.index(owner, resolved.versions[owner]), name, query, resolved)
        else:
            found = self._find_anywhere(resolved, name, query)
        return Retrieval(
            method=found.method,
            context=self._context(found),
            absence=found.absence,
            existence=found.existence,
            instead=found.instead,
            unserved=dict(resolved.missing),
        )

    def _without_module(self, name: str, resolved: Resolved) -> _Found | None:
        """What is absent as the distribution of that name installs no such module: attrs 21.2.0 has attr alone."""
        first = name.partition(".")[0]
        for package, version in resolved.versions.items() if first not in resolved.versions else ():
            distribution, names = self._store.installed_beside(package, version)
            if first and names and first not in names and canonicalize_name(first) == distribution:
                index = self._store.index(package, version)
                evidence = f"{distribution} {version} installs {' and '.join(names)}, and no module {first}."
                known = Existence(verdict=IS_ABSENT, evidence=evidence, verified=True, missing=first)
                absence = explain_absence(self._store, index, name, known, self._renames)
                return self._absent(index, name, known, absence)
        return None

    def _owner(self, name: str, resolved: Resolved) -> str | None:
        """The import name among the dependencies that the API belongs to; None if it does not say."""
        first = name.partition(".")[0]
        if first in resolved.versions:
            return first
        if resolved.missing and ("." in name or not resolved.versions):
            raise DataError("; ".join(resolved.missing.values()))
        if first in self._store.packages() and "." in name:
            raise DataError(f'"dependencies" has no version of {first}, the package of {name}; add it.')
        return None

    def _indexes(self, resolved: Resolved) -> list[VersionIndex]:
        return [self._store.index(package, version) for package, version in resolved.versions.items()]

    def _find(self, index: VersionIndex, name: str, query: Query, resolved: Resolved) -> _Found:
        asked = name
        index, name, known = look_up_beside(index, name, lambda other: self._beside(other, resolved))
        if known.verdict == PRESENT and not self._settings.jump_exact_match:
            return self._present(index, asked, known)
        by_likeness = self._settings.enable_str_match
        absence = None
        if known.verdict == IS_ABSENT:
            absence = explain_absence(self._store, index, name, known, self._renames)
            known = settled(known, absence)
            absence = absence if known.verdict == IS_ABSENT else None
        other = find_renamed(index, name, self._renames) if by_likeness else None
        if other is not None and not (absence is not None and _has_ended(index, absence, other)):
            return replace(self._instead(index, other, name), existence=known)
        if absence is not None and (absence.is_known_elsewhere or not by_likeness):
            return self._absent(index, name, known, absence)
        if by_likeness and (other := self._similar_names(index).find(index, name)) is not None:
            return replace(self._instead(index, other, name), existence=known)
        if absence is not None:
            return self._absent(index, name, known, absence)
        found = self._search([index], name, query)
        preface = self._unknown_text(index, name, known) if known.verdict == UNKNOWN else ""
        return replace(found, existence=known, preface=preface)

    def _beside(self, package: str, resolved: Resolved) -> VersionIndex | None:
        """Another package that the query names, or that one of its distributions installs."""
        return self._store.index(package, resolved.versions[package]) if package in resolved.versions else None

    def _present(self, index: VersionIndex, name: str, known: Existence) -> _Found:
        """The API's own document, or else that of what it belongs to."""
        if known.row is not None:
            hits = [((index, known.row), name)]
            said = deprecation(index, known)
            if not said:
                return _Found(EXACT, hits, existence=known)
            other = find_replacement(index, name, self._renames, index, said)
            preface = deprecated_text(name, index.package, index.version, known.deprecated, other)
            return _Found(EXACT, hits, preface=preface, existence=known, instead=other)
        parent = known.parent if known.parent is not None else index.find(index.package)
        hits = [] if parent is None else [((index, parent), index.public(parent))]
        text = presence_text(name, index.package, index.version, known)
        document = Document(index.package, index.version, None, name)
        return _Found(EXACT, hits, preface=text, preface_of=document, title="It belongs to:\n\n", existence=known)

    def _unknown_text(self, index: VersionIndex, name: str, known: Existence) -> str:
        older, newer = versions_with(self._store, index, name)
        others = " and ".join(other.version for other in (older, newer) if other is not None)
        return known.evidence + (f" {index.package} {others} has it." if others else "")

    def _find_anywhere(self, resolved: Resolved, name: str, query: Query) -> _Found:
        indexes = self._indexes(resolved)
        if name and not self._settings.jump_exact_match:
            # A name without its package: read_csv, DataFrame.groupby.
            below = [(index, f"{index.package}.{name}") for index in indexes]
            there = [
                (index, full, known) for index, full in below if (known := look_up(index, full)).verdict == PRESENT
            ]
            if len(there) == 1:
                return self._present(*there[0])
        if name and self._settings.enable_str_match:
            for index in indexes:
                if (row := self._similar_names(index).find(index, name)) is not None:
                    return self._instead(index, row, name)
        return self._search(indexes, name, query)

    def _instead(self, index: VersionIndex, row: int, name: str) -> _Found:
        public = index.public(row)
        is_other = find_exact(index, name) != row
        title = f"{index.package} {index.version} documents {public}; it has no {name}.\n\n" if is_other else ""
        return _Found(STRING, [((index, row), public)], title=title)

    def _search(self, indexes: Sequence[VersionIndex], name: str, query: Query) -> _Found:
        most = self._settings.fixed_docs_per_query or self._settings.max_documents
        hits = self._ranker.search(indexes, f"{query.query}\n{name}", most)
        for index in indexes:
            # A parameter or an attribute of instances is documented with what it belongs to.
            ancestor = nearest_ancestor(index, name)
            if ancestor and index.row(ancestor[0]).type != "module":
                parent = (index, ancestor[0])
                hits = [parent, *(hit for hit in hits if hit != parent)][:most]
        if not hits:
            where = ", ".join(f"{index.package} {index.version}" for index in indexes)
            raise DataError(f"no document of {where} shares a word with the query.")
        return _Found(FALLBACK, [(hit, hit[0].public(hit[1])) for hit in hits])

    def _absent(self, index: VersionIndex, name: str, known: Existence, absence: Absence) -> _Found:
        similar: list[str] = []
        if absence.moved_to is None:
            qualifier, _, last = name.rpartition(".")
            like = (f"{qualifier}.{other}" for other in self._similar_names(index).like(last))
            similar = [other for other in like if look_up(index, other).verdict == PRESENT][:_SIMILAR_NAMED]
        text = absence_text(name, index.package, index.version, absence, similar)
        row = find_exact(index, absence.moved_to) if absence.moved_to else None
        hits = [] if row is None or absence.moved_to is None else [((index, row), absence.moved_to)]
        title = "What takes its place:\n\n"
        return _Found(ABSENT, hits, absence, text, title=title, existence=known, instead=absence.instead)

    def _similar_names(self, index: VersionIndex) -> SimilarNames:
        if index not in self._similar:
            self._similar[index] = SimilarNames(index)
        return self._similar[index]

    def _source(self, row: CorpusRow) -> str:
        code = self._store.source_code(row)
        if code.problem and row.place and code.problem not in self._told:
            self._told.add(code.problem)
            _LOGGER.warning("no source code: %s", code.problem)
        return code.shown()

    def _context(self, found: _Found) -> Context:
        texts: list[tuple[Document | None, str]] = [(found.preface_of, found.preface)] if found.preface else []
        for (index, row), name in found.hits:
            document = Document(index.package, index.version, row, name)
            source = self._source(index.row(row)) if self._settings.include_source else ""
            texts.append((document, document_text(document, index.row(row), title=found.title, source=source)))
        return assemble(texts, budget=self._budget, max_tokens=self._settings.max_tokens)


def _has_ended(index: VersionIndex, absence: Absence, renamed: int) -> bool:
    """Whether an API is known to be removed, or to have another successor than the one below its renamed module."""
    if absence.removed_in or absence.instead is None:
        return bool(absence.removed_in)
    is_told = bool(absence.note) or absence.instead.is_noted
    return is_told and look_up(index, absence.instead.name).row != renamed
