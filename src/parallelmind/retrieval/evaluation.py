"""Measure retrieval on labelled queries: ranks of the right documents, and whether each was found the right way.

A labelled row is a flat query with `method` (how it should be served) and `expected` (names of the documents that serve
it; none for an API that is gone), and optionally `kind` (a group to count by) and `moved_to`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError
from parallelmind.io.jsonl import read_lines
from parallelmind.io.records import load_object, show_value
from parallelmind.retrieval.context_text import Context
from parallelmind.retrieval.queries import Query, expand_item, is_nested
from parallelmind.retrieval.retriever import ABSENT, FALLBACK, METHODS, Retrieval
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.truth import ERROR, document_names

HIT_DEPTHS = (1, 5, 10)
_MISTAKES_LISTED = 20


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    query: Query
    method: str
    expected: frozenset[str]
    kind: str
    moved_to: str | None
    part: str = ""


@dataclass(frozen=True, slots=True)
class MethodScore:
    """One way of finding, as a classifier. A row counts as right if the document is right too."""

    expected: int
    given: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.given if self.given else None

    @property
    def recall(self) -> float | None:
        return self.right / self.expected if self.expected else None


@dataclass(frozen=True, slots=True)
class RankScore:
    """How high the right documents are."""

    queries: int
    hits: Mapping[int, float]
    """hit@k."""
    mrr: float
    """Mean reciprocal rank, over the first 10 documents."""

    @classmethod
    def of(cls, ranks: Sequence[int | None]) -> RankScore:
        found = [rank for rank in ranks if rank is not None]
        return cls(
            queries=len(ranks),
            hits={depth: sum(rank <= depth for rank in found) / len(ranks) if ranks else 0.0 for depth in HIT_DEPTHS},
            mrr=sum(1 / rank for rank in found if rank <= HIT_DEPTHS[-1]) / len(ranks) if ranks else 0.0,
        )

    def fields(self) -> dict[str, Any]:
        return {"queries": self.queries, "hits": named_hits(self.hits), "mrr": self.mrr}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results over all labelled queries."""

    queries: int
    right: int
    """Served the right way with the right document first, or rightly said to be absent."""
    methods: Mapping[str, MethodScore]
    confusion: Mapping[str, Mapping[str, int]]
    """Expected method, then the one given, then how often."""
    kinds: Mapping[str, tuple[int, int]]
    """(right, queries) of each kind."""
    ranked: int
    """Queries labelled `rag_fallback`: those that the next two are about."""
    hits: Mapping[int, float]
    """hit@k."""
    mrr: float
    """Mean reciprocal rank, over the first 10 documents."""
    errors: Mapping[str, int]
    """Why queries could not be served, and how many."""
    parts: Mapping[str, RankScore]
    """The ranked queries that name a part, by part and kind."""
    moved_right: int
    moved: int
    """Absent APIs labelled with what takes their place."""
    mistakes: Sequence[Mapping[str, Any]]
    """The first ones."""

    def fields(self) -> dict[str, Any]:
        scores = {
            name: dataclasses.asdict(score) | {"precision": score.precision, "recall": score.recall}
            for name, score in self.methods.items()
        }
        plain = dataclasses.asdict(dataclasses.replace(self, methods={}, hits={}, parts={}))
        parts = {name: score.fields() for name, score in self.parts.items()}
        return plain | {"methods": scores, "hits": named_hits(self.hits), "parts": parts}


def named_hits(hits: Mapping[int, float]) -> dict[str, float]:
    return {f"hit@{depth}": value for depth, value in hits.items()}


def read_labelled(path: Path) -> list[LabelledQuery]:
    """Read a labelled queries file.

    Raises:
        DataError: a row is wrong; names the line and the field.
    """
    return list(_labelled(path))


def evaluate(retrieve: Callable[[Query], Retrieval], store: CorpusStore, labelled: Iterable[LabelledQuery]) -> Report:
    """Serve every query and compare. `retrieve` should put 10 documents into a context.

    A query that cannot be served, as when the corpus lacks its version, counts as `error`.
    """
    tally = _Tally(store)
    for row in labelled:
        try:
            retrieval = retrieve(row.query)
        except DataError as error:
            tally.errors[str(error)] += 1
            retrieval = Retrieval(method=ERROR, context=Context("", [], False, None))
        tally.add(row, retrieval)
    return tally.report()


class _Tally:
    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._queries = self._right = self._moved = self._moved_right = 0
        self.errors: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()
        self._given: Counter[str] = Counter()
        self._right_by_method: Counter[str] = Counter()
        self._confusion: dict[str, Counter[str]] = {}
        self._kinds: dict[str, Counter[bool]] = {}
        self._ranks: list[int | None] = []
        self._parts: dict[str, list[int | None]] = {}
        self._mistakes: list[Mapping[str, Any]] = []

    def add(self, row: LabelledQuery, retrieval: Retrieval) -> None:
        ranks = [place for place, names in enumerate(self._names(retrieval), start=1) if names & row.expected]
        rank = ranks[0] if ranks else None
        if row.method == FALLBACK:
            self._ranks.append(rank)
            if row.part:
                self._parts.setdefault(f"{row.part}, {row.kind}", []).append(rank)
        same_method = retrieval.method == row.method
        right = same_method and (row.method == ABSENT or rank == 1)
        self._queries += 1
        self._right += right
        self._expected[row.method] += 1
        self._given[retrieval.method] += 1
        self._right_by_method[row.method] += right
        self._confusion.setdefault(row.method, Counter())[retrieval.method] += 1
        self._kinds.setdefault(row.kind, Counter())[right] += 1
        if row.moved_to is not None:
            self._moved += 1
            moved = retrieval.absence and retrieval.absence.moved_to
            self._moved_right += moved == row.moved_to
        if not right and (not same_method or row.method != FALLBACK) and len(self._mistakes) < _MISTAKES_LISTED:
            self._mistakes.append(_mistake(row, retrieval))

    def report(self) -> Report:
        ranked = RankScore.of(self._ranks)
        return Report(
            queries=self._queries,
            right=self._right,
            methods={
                name: MethodScore(self._expected[name], self._given[name], self._right_by_method[name])
                for name in METHODS
            },
            confusion={name: dict(counts) for name, counts in self._confusion.items()},
            kinds={kind: (counts[True], counts.total()) for kind, counts in sorted(self._kinds.items())},
            ranked=ranked.queries,
            hits=ranked.hits,
            mrr=ranked.mrr,
            errors=dict(self.errors),
            parts={name: RankScore.of(ranks) for name, ranks in sorted(self._parts.items())},
            moved_right=self._moved_right,
            moved=self._moved,
            mistakes=self._mistakes,
        )

    def _names(self, retrieval: Retrieval) -> Iterator[set[str]]:
        for document in retrieval.context.documents:
            yield document_names(self._store, document)


def _mistake(row: LabelledQuery, retrieval: Retrieval) -> dict[str, Any]:
    return {
        "id": row.query.original_item_id,
        "target_api": row.query.target_api,
        "dependencies": dict(row.query.dependencies),
        "expected_method": row.method,
        "method": retrieval.method,
        "expected": sorted(row.expected)[:3],
        "found": [document.name for document in retrieval.context.documents[:1]],
    }


def _labelled(path: Path) -> Iterator[LabelledQuery]:
    for line in read_lines(path):
        where = f"{path}: line {line.number}"
        row = load_object(line.content, where)
        if is_nested(row):
            raise DataError(f'{where} has "queries"; a labelled row is one query, so write one a line.')
        (query,) = expand_item(row, line.index, where)
        if query.error:
            raise DataError(query.error)
        method, expected = row.get("method"), row.get("expected", [])
        if method not in METHODS:
            raise DataError(f'{where}: "method" is {show_value(method)}; expected one of {", ".join(METHODS)}.')
        if not isinstance(expected, list) or not all(isinstance(name, str) for name in expected):
            raise DataError(f'{where}: "expected" is {show_value(expected)}; expected a list of API names.')
        if not expected and method != ABSENT:
            raise DataError(f'{where}: "expected" is empty; only absent APIs have no document.')
        yield LabelledQuery(
            query=query,
            method=method,
            expected=frozenset(expected),
            kind=str(row.get("kind", method)),
            moved_to=row.get("moved_to"),
            part=str(row.get("part", "")),
        )
