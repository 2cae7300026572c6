"""Ranked search by words: BM25 over one version of a package, its index on disk beside the names.

A document is the row's name, signature and text; name and summary count more than the rest, as the words a person
asks with are most often those. Identifiers are split, nothing is stemmed. Parameters k1 0.9 and b 0.4: see
benchmarks/retrieval.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus_rows import CorpusRow, summary
from parallelmind.retrieval.version_index import VersionIndex, cached_folder, public_name

_FORMAT = 1
_K1, _B = 0.9, 0.4
_SUMMARY_WEIGHT = 2
_DOTTED = re.compile(r"\w+(?:\.\w+)*")
_ASCII_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
# One character of Chinese, Japanese or Korean is a term: those scripts put no spaces between words.
_OTHER_PART = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\d+"
)


class KeywordSearch:
    """BM25 without stemming; opened, and built if need be, for one version."""

    def __init__(self, index: VersionIndex) -> None:
        bm25s = _import_bm25s()

        def build(folder: Path) -> None:
            ranking = bm25s.BM25(k1=_K1, b=_B, backend="numpy")
            ranking.index([_terms(row) for row in index.all_rows()] or [[""]], show_progress=False)
            ranking.save(folder, show_progress=False)

        folder = cached_folder(index.folder / f"bm25-{_FORMAT}", build, flag="--index_path")
        self._ranking = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def has_word(self, word: str) -> bool:
        """Whether any row's name or text has this word or identifier, in whatever case."""
        return word.casefold() in self._ranking.vocab_dict

    def search(self, text: str, count: int) -> list[tuple[int, float]]:
        """(row, score) of the `count` best rows that share a word with `text`, best first; equal ones in file order."""
        terms = self._ranking.get_tokens_ids(search_terms(text))
        if not terms:
            return []
        return best(self._ranking.get_scores_from_ids(terms), count)


def best(scores: np.ndarray[Any, np.dtype[np.float32]], count: int) -> list[tuple[int, float]]:
    """(place, score) of the `count` highest scores above 0, highest first; equal ones by place."""
    count = min(count, len(scores))
    if count < len(scores):
        least = float(np.partition(scores, len(scores) - count)[len(scores) - count])
        places = np.flatnonzero(scores >= max(least, float(np.finfo(np.float32).tiny)))
    else:
        places = np.flatnonzero(scores > 0)
    ordered = places[np.argsort(-scores[places], kind="stable")][:count]
    return list(zip(ordered.tolist(), scores[ordered].tolist(), strict=True))


def _terms(row: CorpusRow) -> list[str]:
    weighted = f"{row.path}\n" + f"{public_name(row)}\n{summary(row.doc)}\n" * _SUMMARY_WEIGHT
    return search_terms(f"{weighted}{row.signature}\n{row.doc}") or [""]


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise SettingsError("ranked search needs bm25s; install it: pip install 'parallelmind[rag]'.") from error
    return bm25s


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
