"""Words of documentation and code as search terms: identifiers are split, nothing is stemmed."""

from __future__ import annotations

import re

_DOTTED = re.compile(r"\w+(?:\.\w+)*")
_ASCII_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
# One character of Chinese, Japanese or Korean is a term: those scripts put no spaces between words.
_OTHER_PART = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\d+"
)


def split_identifier(word: str) -> list[str]:
    """The parts of one name, in lower case: `MinMaxScaler` is min, max, scaler; `read_csv` is read, csv."""
    pattern = _ASCII_PART if word.isascii() else _OTHER_PART
    return [part.casefold() for part in pattern.findall(word)]


def search_terms(text: str) -> list[str]:
    """All terms of a text, in order: the parts of every identifier, and after them each name that had several."""
    terms: list[str] = []
    for dotted in _DOTTED.findall(text):
        for name in dotted.split("."):
            parts = split_identifier(name)
            terms += parts
            if len(parts) > 1:
                terms.append(name.casefold())
    return terms
