"""How likely a row is to be what a question means, before the question is known.

A short public path, documentation, and how often the package speaks of it say so. Private, vendored and deprecated
rows, attributes and whole modules are seldom meant. `relevance.py` holds what each of these is worth.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parallelmind.retrieval.corpus_rows import CorpusRow

Floats = np.ndarray[Any, np.dtype[np.float32]]

FEATURES = (
    "components", "side module", "private", "special", "deprecated", "undocumented", "module", "attribute", "class",
    "exception", "length of documentation", "uses", "mentions",
)  # fmt: skip

_SIDE_MODULE = re.compile(
    r"_?(?:vendor(?:ed)?|extern(?:al|als)?|packages|third_party|compat|deprecated|legacy|v\d+|testing|tests?|conftest"
    r"|internals?|backports?|mixins?)"
)
_SAYS_DEPRECATED = re.compile(r"\.\. deprecated::|^\W*deprecated\b", re.IGNORECASE)
_EXCEPTION = re.compile(r"Error|Exception|Warning")
_MENTION = re.compile(r"`+~?\.?([A-Za-z_][\w.]*)(?:\(\))?`+|\b([A-Za-z_]\w*)\(")
_HEAD = 1500
_NAMES_THAT_TELL = 200
"""A last component that more rows share, such as `get`, says nothing of any of them."""
_FREE_COMPONENTS, _MOST_COMPONENTS = 2, 6


class Prominence:
    """Collects rows one by one, so that their documentation need not be kept."""

    def __init__(self) -> None:
        self._features: list[tuple[float, ...]] = []
        self._rows_of_last: defaultdict[str, list[int]] = defaultdict(list)
        self._mentioned_in: defaultdict[str, set[int]] = defaultdict(set)

    def add(self, row: CorpusRow, public: str) -> None:
        """The next row, and the name that is shown for it."""
        place = len(self._features)
        self._rows_of_last[public.rpartition(".")[2]].append(place)
        for last in set(_mentions(row.doc)):
            self._mentioned_in[last].add(place)
        self._features.append(_features(row, public.split(".")))

    def features(self) -> Floats:
        """[rows, features], in the order of `FEATURES`."""
        mentions = np.zeros(len(self._features), np.float32)
        for last, rows in self._rows_of_last.items():
            others = self._mentioned_in.get(last, set())
            if len(rows) <= _NAMES_THAT_TELL:
                mentions[rows] = [len(others) - (row in others) for row in rows]
        known = np.array(self._features, np.float32).reshape(len(mentions), len(FEATURES) - 1)
        return np.column_stack([known, np.log1p(mentions)]).astype(np.float32)


def _mentions(doc: str) -> Iterator[str]:
    for match in _MENTION.finditer(doc):
        yield (match[1] or match[2]).rpartition(".")[2]


def _features(row: CorpusRow, components: Sequence[str]) -> tuple[float, ...]:
    modules = components[1:] if row.type == "module" else components[1:-1]
    return (
        max(0, min(len(components), _MOST_COMPONENTS) - _FREE_COMPONENTS),
        any(map(_SIDE_MODULE.fullmatch, modules)),
        any(part.startswith("_") and not part.startswith("__") for part in components),
        components[-1].startswith("__"),
        bool(row.deprecated or _SAYS_DEPRECATED.search(row.doc[:_HEAD])),
        not row.doc.strip(),
        row.type == "module",
        row.type in ("attribute", "property"),
        row.type == "class",
        bool(row.type == "class" and _EXCEPTION.search(components[-1])),
        math.log1p(len(row.doc)),
        math.log1p(row.uses),
    )
