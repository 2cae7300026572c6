"""The statistics of a file of context rows, by the way each context was found."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelmind.io.jsonl import read_lines
from parallelmind.retrieval.retriever import METHODS

_REASONS_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextStatistics:
    """The counts reconcile: queries = duplicates + contexts; contexts = sum of methods + errors."""

    queries: int
    duplicates: int
    contexts: int
    methods: Mapping[str, int]
    errors: int
    error_reasons: Mapping[str, int]
    """The most frequent reasons, with how often each came."""
    truncated: int
    mean_context_length: float
    """Characters, of the contexts without error."""
    mean_retrieval_time: float
    """Seconds, of all rows."""

    def fields(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def collect_context_statistics(path: Path, *, queries: int, duplicates: int) -> ContextStatistics:
    """Read the rows once.

    Raises:
        DataError: the file cannot be read.
    """
    methods: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    contexts = truncated = length = 0
    seconds = 0.0
    for line in read_lines(path):
        row = json.loads(line.content)
        contexts += 1
        seconds += row["retrieval_time"]
        if row["success"]:
            methods[row["retrieval_method"]] += 1
            length += row["context_length"]
            truncated += row["truncated"]
        else:
            reasons[row["error"]] += 1
    good = sum(methods.values())
    return ContextStatistics(
        queries=queries,
        duplicates=duplicates,
        contexts=contexts,
        methods={method: methods[method] for method in METHODS},
        errors=contexts - good,
        error_reasons=dict(reasons.most_common(_REASONS_LISTED)),
        truncated=truncated,
        mean_context_length=length / good if good else 0.0,
        mean_retrieval_time=seconds / contexts if contexts else 0.0,
    )
