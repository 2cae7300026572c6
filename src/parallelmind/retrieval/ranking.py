"""Ranked search over versions of packages: by words, by meaning, or both, and by what is usually meant."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallelmind.retrieval.dense_search import DenseSearch, Embedder, Vectors
from parallelmind.retrieval.keyword_search import KeywordSearch, highest
from parallelmind.retrieval.prominence import Floats
from parallelmind.retrieval.relevance import WEIGHTS, Weights
from parallelmind.retrieval.version_index import VersionIndex

_MORE_FOR_DUPLICATES = 4
_NEAREST = 200
"""So many rows, the nearest in meaning, are looked at besides those that share a word."""

Hit = tuple[VersionIndex, int]


class Ranker:
    """Opens the search indexes of versions when they are first needed, and drops them with the version."""

    def __init__(self, ranking: str = "bm25", embedder: Embedder | None = None) -> None:
        """`embedder` is needed for `dense` and `hybrid`."""
        self._weights = WEIGHTS[ranking]
        self._embedder = embedder if self._weights.meaning else None
        self._versions: weakref.WeakKeyDictionary[VersionIndex, Version] = weakref.WeakKeyDictionary()

    def search(self, indexes: Sequence[VersionIndex], text: str, count: int) -> list[Hit]:
        """The `count` best rows of all `indexes`, best first; of rows with the same documentation only the best."""
        vector = self._embedder.embed([text])[0] if self._embedder else None
        signs = [(index, self._version(index).signs(text, vector)) for index in indexes]
        most = max((float(one.words.max(initial=0)) for _, one in signs), default=0.0)
        scored: list[tuple[float, Hit]] = []
        for index, one in signs:
            rows = one.candidates(self._weights)
            scores = one.scores(self._weights, most, rows)
            best = highest(scores, count * _MORE_FOR_DUPLICATES)
            scored += [(float(scores[place]), (index, int(rows[place]))) for place in best]
        # Sorting is stable: equal scores stay in the order of packages and rows.
        return _distinct([hit for _, hit in sorted(scored, key=lambda pair: -pair[0])], count)

    def _version(self, index: VersionIndex) -> Version:
        if index not in self._versions:
            self._versions[index] = Version(index, self._weights, self._embedder)
        return self._versions[index]


@dataclass(frozen=True, slots=True)
class Signs:
    """What speaks for each row of a version, as [rows]."""

    words: Floats
    cosines: Floats | None
    prior: Floats
    """Whatever the question is."""

    def candidates(self, weights: Weights) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows that share a word with the question, and those that are nearest in meaning; in file order."""
        found = self.words > 0 if weights.words else np.zeros(len(self.words), np.bool_)
        if self.cosines is not None:
            if len(found) > _NEAREST:
                found[np.argpartition(-self.cosines, _NEAREST)[:_NEAREST]] = True
            else:
                found[:] = True
            found &= (self.words > 0) | (self.cosines > 0)
        return np.flatnonzero(found)

    def scores(self, weights: Weights, most: float, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
        """Of some rows; `most` is what that words are worth in any version that is searched."""
        scores = self.prior[rows] + weights.words / (most or 1.0) * self.words[rows]
        return scores if self.cosines is None else scores + weights.meaning * self.cosines[rows]


class Version:
    """The search indexes of one version of a package."""

    def __init__(self, index: VersionIndex, weights: Weights, embedder: Embedder | None) -> None:
        self._words = KeywordSearch(index)
        self._meaning = DenseSearch(index, embedder) if embedder else None
        self._prior = weights.prior(self._words.features)
        self.features = self._words.features

    def signs(self, text: str, vector: Vectors | None) -> Signs:
        cosines = self._meaning.cosines(vector) if self._meaning and vector is not None else None
        return Signs(self._words.scores(text), cosines, self._prior)


def _distinct(ranked: Sequence[Hit], count: int) -> list[Hit]:
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
