"""Ranked search over versions of packages: by words, by meaning, or both."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

from parallelmind.retrieval.dense_search import DenseSearch, Embedder
from parallelmind.retrieval.keyword_search import KeywordSearch
from parallelmind.retrieval.version_index import VersionIndex

_FUSION_CONSTANT = 60
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""
_FUSION_DEPTH = 50
_MORE_FOR_DUPLICATES = 4

Hit = tuple[VersionIndex, int]


class Ranker:
    """Opens the search indexes of versions when they are first needed, and drops them with the version."""

    def __init__(self, ranking: str = "bm25", embedder: Embedder | None = None) -> None:
        """`embedder` is needed for `dense` and `hybrid`."""
        self._ranking = ranking
        self._embedder = embedder
        self._keyword: weakref.WeakKeyDictionary[VersionIndex, KeywordSearch] = weakref.WeakKeyDictionary()
        self._dense: weakref.WeakKeyDictionary[VersionIndex, DenseSearch] = weakref.WeakKeyDictionary()

    def keywords(self, index: VersionIndex) -> KeywordSearch:
        if index not in self._keyword:
            self._keyword[index] = KeywordSearch(index)
        return self._keyword[index]

    def search(self, indexes: Sequence[VersionIndex], text: str, count: int) -> list[Hit]:
        """The `count` best rows of all `indexes`, best first; of rows with the same documentation only the best."""
        depth = count * _MORE_FOR_DUPLICATES
        if self._ranking == "bm25":
            ranked = self._by_words(indexes, text, depth)
        elif self._ranking == "dense":
            ranked = self._by_meaning(indexes, text, depth)
        else:
            depth = max(depth, _FUSION_DEPTH)
            ranked = _fused([self._by_words(indexes, text, depth), self._by_meaning(indexes, text, depth)])
        return _distinct(ranked, count)

    def _by_words(self, indexes: Sequence[VersionIndex], text: str, count: int) -> list[Hit]:
        scored = [(score, (index, row)) for index in indexes for row, score in self.keywords(index).search(text, count)]
        return _best(scored, count)

    def _by_meaning(self, indexes: Sequence[VersionIndex], text: str, count: int) -> list[Hit]:
        assert self._embedder
        vector = self._embedder.embed([text])[0]
        scored = []
        for index in indexes:
            if index not in self._dense:
                self._dense[index] = DenseSearch(index, self._embedder)
            scored += [(score, (index, row)) for row, score in self._dense[index].search(vector, count)]
        return _best(scored, count)


def _best(scored: Iterable[tuple[float, Hit]], count: int) -> list[Hit]:
    # Sorting is stable: equal scores stay in the order of packages and rows.
    return [hit for _, hit in sorted(scored, key=lambda pair: -pair[0])[:count]]


def _fused(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    scores: dict[Hit, float] = {}
    for ranking in rankings:
        for place, hit in enumerate(ranking, start=1):
            scores[hit] = scores.get(hit, 0.0) + 1 / (_FUSION_CONSTANT + place)
    return sorted(scores, key=lambda hit: -scores[hit])


def _distinct(ranked: Iterable[Hit], count: int) -> list[Hit]:
    kept: list[Hit] = []
    seen: set[str] = set()
    for index, row in ranked:
        doc = index.row(row).doc
        if doc and doc in seen:
            continue
        seen.add(doc)
        kept.append((index, row))
        if len(kept) == count:
            break
    return kept
