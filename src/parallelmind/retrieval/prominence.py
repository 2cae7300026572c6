"""How likely a row is to be what a question means, before the question is known.

A short public path, documentation, and how often the package speaks of it say so. Private, vendored and deprecated
rows, attributes and whole modules are seldom meant. `relevance.py` holds what each of these is worth.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from parallelmind.retrieval.corpus_rows import CorpusRow

Floats = np.ndarray[Any, np.dtype[np.float32]]

FEATURES = (
    "components", "side module", "private", "special", "deprecated", "undocumented", "module", "attribute", "class",
    "exception", "length of documentation", "uses",
)  # fmt: skip

_SIDE_MODULE = re.compile(
    r"_?(?:vendor(?:ed)?|extern(?:al|als)?|packages|third_party|compat|deprecated|legacy|v\d+|testing|tests?|conftest"
    r"|internals?|backports?|mixins?)"
)
_SAYS_DEPRECATED = re.compile(r"\.\. deprecated::|^\W*deprecated\b", re.IGNORECASE)
_EXCEPTION = re.compile(r"Error|Exception|Warning")
_HEAD = 1500
_FREE_COMPONENTS, _MOST_COMPONENTS = 2, 6


def features_of(row: CorpusRow, public: str) -> tuple[float, ...]:
    """In the order of `FEATURES`; `public` is the name that is shown for the row."""
    components = public.split(".")
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
