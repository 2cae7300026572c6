"""How likely a row is to be what a question means, before the question is known.

A short public path, documentation, and mentions in the documentation of other rows speak for a row. Private, vendored,
deprecated and undocumented ones, attributes and whole modules are seldom meant.
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

_SIDE_MODULE = re.compile(
    r"_?(?:vendor(?:ed)?|extern(?:al|als)?|packages|third_party|compat|deprecated|legacy|v\d+|testing|tests?|conftest"
    r"|internals?|backports?|utils?|mixins?)"
)
_SAYS_DEPRECATED = re.compile(r"\.\. deprecated::|^\W*deprecated\b", re.IGNORECASE)
_MENTION = re.compile(r"`+~?\.?([A-Za-z_][\w.]*)(?:\(\))?`+|\b([A-Za-z_]\w*)\(")
_HEAD = 1500
_NAMES_THAT_TELL = 200
"""A last component that more rows share, such as `get`, says nothing of any of them."""
_PRIVATE, _SPECIAL, _SIDE, _DEPRECATED, _UNDOCUMENTED, _MODULE, _ATTRIBUTE = 0.5, 0.4, 0.6, 0.7, 0.6, 0.6, 0.7
_FREE_COMPONENTS = 2
_PER_COMPONENT = 0.2
_PER_MENTION = 0.07


class Prominence:
    """Collects rows one by one, so that their documentation need not be kept."""

    def __init__(self) -> None:
        self._factors: list[float] = []
        self._rows_of_last: defaultdict[str, list[int]] = defaultdict(list)
        self._mentioned_in: defaultdict[str, set[int]] = defaultdict(set)

    def add(self, row: CorpusRow, public: str) -> None:
        """The next row, and the name that is shown for it."""
        place = len(self._factors)
        self._rows_of_last[public.rpartition(".")[2]].append(place)
        for last in set(_mentions(row.doc)):
            self._mentioned_in[last].add(place)
        self._factors.append(_factor(row, public.split(".")))

    def factors(self) -> Floats:
        """What to multiply the score of each row by."""
        mentions = np.zeros(len(self._factors), np.float32)
        for last, rows in self._rows_of_last.items():
            others = self._mentioned_in.get(last, set())
            if len(rows) <= _NAMES_THAT_TELL:
                mentions[rows] = [len(others) - (row in others) for row in rows]
        return (np.array(self._factors) * (1 + _PER_MENTION * np.log1p(mentions))).astype(np.float32)


def _mentions(doc: str) -> Iterator[str]:
    for match in _MENTION.finditer(doc):
        yield (match[1] or match[2]).rpartition(".")[2]


def _factor(row: CorpusRow, components: Sequence[str]) -> float:
    modules = components[1:] if row.type == "module" else components[1:-1]
    factor = math.exp(-_PER_COMPONENT * max(0, len(components) - _FREE_COMPONENTS))
    for holds, cost in (
        (any(part.startswith("_") and not part.startswith("__") for part in components), _PRIVATE),
        (components[-1].startswith("__"), _SPECIAL),
        (any(_SIDE_MODULE.fullmatch(part) for part in modules), _SIDE),
        (row.deprecated or _SAYS_DEPRECATED.search(row.doc[:_HEAD]), _DEPRECATED),
        (not row.doc.strip(), _UNDOCUMENTED),
        (row.type == "module", _MODULE),
        (row.type == "attribute", _ATTRIBUTE),
    ):
        if holds:
            factor *= cost
    return factor
