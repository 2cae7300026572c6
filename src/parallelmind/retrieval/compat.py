"""The looser matching that this package replaces, for those who must compare with its results.

A name counts as an exact match if it contains, or is contained in, a name of the corpus; an API that is gone gets a
neighbour; and queries are duplicates if their text is the same, whatever versions they ask about.
"""

from __future__ import annotations

import hashlib
import weakref

from parallelmind.errors import DataError
from parallelmind.retrieval.budget import TokenBudget
from parallelmind.retrieval.context_text import Document, assemble, document_text
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.retriever import EXACT, FALLBACK, Retrieval, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.version_index import VersionIndex


def text_key(query: Query) -> str:
    """What makes two queries duplicates: their text alone."""
    return hashlib.blake2b(query.query.encode("utf-8"), digest_size=16).hexdigest()


def substring_match(names: list[tuple[str, int]], target: str) -> int | None:
    """The row of the first name that is `target`, else contains it, else is contained in it (packages do not count)."""
    rules = (
        lambda name: name == target,
        lambda name: target in name,
        lambda name: "." in name and name in target,
    )
    for rule in rules:
        for name, row in names:
            if rule(name):
                return row
    return None


class CompatRetriever:
    """Has the interface of `Retriever`."""

    def __init__(
        self, store: CorpusStore, settings: RetrieverSettings, *, ranker: Ranker, budget: TokenBudget | None
    ) -> None:
        self._store = store
        self._settings = settings
        self._ranker = ranker
        self._budget = budget
        self._names: weakref.WeakKeyDictionary[VersionIndex, list[tuple[str, int]]] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Close the corpus."""
        self._store.close()

    def retrieve(self, query: Query) -> Retrieval:
        """The context of a query.

        Raises:
            DataError: the query is wrong, or the corpus has none of its versions.
        """
        if query.error:
            raise DataError(query.error)
        resolved = self._store.resolve(query.dependencies)
        if not resolved.versions:
            raise DataError("; ".join(resolved.missing.values()))
        indexes = [self._store.index(package, version) for package, version in resolved.versions.items()]
        method, hits = EXACT, []
        if query.target_api and not self._settings.jump_exact_match:
            matches = ((index, substring_match(self._all_names(index), query.target_api)) for index in indexes)
            hits = [(index, row) for index, row in matches if row is not None][:1]
        if not hits:
            method = FALLBACK
            most = self._settings.fixed_docs_per_query or self._settings.max_documents
            hits = self._ranker.search(indexes, f"{query.query}\n{query.target_api}", most)
        documents = [Document(index.package, index.version, row, index.public(row)) for index, row in hits]
        texts = [
            (document, document_text(document, index.row(row)))
            for document, (index, row) in zip(documents, hits, strict=True)
        ]
        context = assemble(texts, budget=self._budget, max_tokens=self._settings.max_tokens)
        return Retrieval(method=method, context=context, unserved=dict(resolved.missing))

    def _all_names(self, index: VersionIndex) -> list[tuple[str, int]]:
        if index not in self._names:
            self._names[index] = list(index.all_names())
        return self._names[index]
