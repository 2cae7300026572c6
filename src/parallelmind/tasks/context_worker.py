"""Find the context of each query; nothing here knows where queries come from or where rows go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from parallelmind.errors import DataError
from parallelmind.io.jsonl import JsonLine
from parallelmind.jobs.results import RecordResult
from parallelmind.jobs.task import Write
from parallelmind.retrieval.expansion import load_query
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import Retrieval


class RetrieverLike(Protocol):
    """What is asked of a retriever."""

    def retrieve(self, query: Query) -> Retrieval:
        """The context of a query; raises DataError if there is none."""

    def close(self) -> None: ...


class ContextWorker:
    """Works on expanded queries; `run` may be called for any share of them."""

    def __init__(self, retriever: RetrieverLike, *, on_step: Callable[[], None] = lambda: None) -> None:
        self._retriever = retriever
        self._on_step = on_step

    def run(self, lines: Iterable[JsonLine], write: Write) -> None:
        """Hand the row of each query to `write`, in order."""
        for line in lines:
            write(line, self._result(load_query(line.content)))
            self._on_step()

    def close(self) -> None:
        self._retriever.close()

    def _result(self, query: Query) -> RecordResult:
        started = time.perf_counter()
        try:
            retrieval = self._retriever.retrieve(query)
        except DataError as error:
            seconds = time.perf_counter() - started
            # What is wrong with a query stays wrong; a version that the corpus lacks may be there the next time.
            row, kind = error_row(query, str(error), seconds), "QueryError" if query.error else "NotInCorpus"
            return RecordResult.of([row], final=query.error is not None, error_class=kind, seconds=seconds)
        seconds = time.perf_counter() - started
        return RecordResult.of([context_row(query, retrieval, seconds)], seconds=seconds)


def context_row(query: Query, retrieval: Retrieval, seconds: float) -> dict[str, Any]:
    """The output row of a query that was served."""
    context = retrieval.context
    row = query.fields() | {
        "retrieval_method": retrieval.method,
        "context": context.text,
        "context_length": len(context.text),
        "retrieval_time": round(seconds, 6),
        "success": True,
        "truncated": context.truncated,
        "documents": [document.fields() for document in context.documents],
    }
    if context.tokens is not None:
        row["context_tokens"] = context.tokens
    if retrieval.absence is not None:
        row["absent"] = retrieval.absence.fields()
    if retrieval.unserved:
        row["dependencies_not_in_corpus"] = sorted(retrieval.unserved)
    return row


def error_row(query: Query, error: str, seconds: float = 0.0) -> dict[str, Any]:
    """The output row of a query that was not."""
    return query.fields() | {
        "retrieval_method": None,
        "context": "",
        "context_length": 0,
        "retrieval_time": round(seconds, 6),
        "success": False,
        "error": error,
    }
