"""Ranked search by words: BM25F over one version of a package, its index on disk beside the names.

A document has six fields: its own name, the names it is below, its parameters, the first sentence, the whole text, and
what pages of documentation say where they use it. Each has a weight and a length of its own (Robertson, Zaragoza and
Taylor, 2004). English words are stemmed, identifiers are also split. The numbers were chosen on the dev part of
examples/retrieval/paraphrased.jsonl, and measured on its test part.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parallelmind.retrieval.corpus_rows import summary
from parallelmind.retrieval.english import FUNCTION_WORDS, stem
from parallelmind.retrieval.prominence import FEATURES, Floats, features_of
from parallelmind.retrieval.version_index import VersionIndex, cached_folder, public_name

_FORMAT = 3
_SATURATION = 1.5
_FUNCTION_WORD = 0.4
"""What such a word of a question counts, against 1 of others."""
_LONGEST_SIGNATURE = 2000
_DOTTED = re.compile(r"\w+(?:\.\w+)*")
_ASCII_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
# One character of Chinese, Japanese or Korean is a term: those scripts put no spaces between words.
_OTHER_PART = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\d+"
)


_Numbers = np.ndarray[Any, np.dtype[Any]]


class _Field:
    """How often each term stands in one field of each row."""

    def __init__(self, weight: float, length_share: float) -> None:
        """`length_share`: from 0, all lengths count alike, to 1, twice the length halves the weight of a term."""
        self._weight = weight
        self._length_share = length_share
        self._terms, self._rows, self._counts = array("q"), array("q"), array("f")
        self._lengths = array("f")

    def add(self, text: str, vocabulary: dict[str, int]) -> None:
        """The text of the next row."""
        terms = [stem(term) for term in search_terms(text)]
        for term, count in Counter(terms).items():
            self._terms.append(vocabulary.setdefault(term, len(vocabulary)))
            self._rows.append(len(self._lengths))
            self._counts.append(count)
        self._lengths.append(len(terms))

    def weighted(self) -> tuple[_Numbers, _Numbers, _Numbers]:
        """Terms, rows, and the weight of each term in that row."""
        rows = np.array(self._rows, np.int64)
        lengths = np.array(self._lengths, np.float32)
        usual = float(lengths.mean()) if len(lengths) and lengths.any() else 1.0
        scale = self._weight / (1 - self._length_share + self._length_share * lengths / usual)[rows]
        return np.array(self._terms, np.int64), rows, np.array(self._counts, np.float32) * scale


class KeywordSearch:
    """BM25F; opened, and built if need be, for one version."""

    def __init__(self, index: VersionIndex) -> None:
        def build(folder: Path) -> None:
            _build(index, folder)

        folder = cached_folder(index.folder / f"words-{_FORMAT}", build, flag="--index_path")
        terms = (folder / "terms.txt").read_text(encoding="utf-8").split("\n")
        self._number = {term: number for number, term in enumerate(terms)}
        self._starts = np.load(folder / "starts.npy")
        # As plain arrays over the same pages: slices of them cost a third of a memmap's.
        self._rows = np.asarray(np.load(folder / "rows.npy", mmap_mode="r"))
        self._scores = np.asarray(np.load(folder / "scores.npy", mmap_mode="r"))
        self.features: Floats = np.asarray(np.load(folder / "features.npy", mmap_mode="r"))
        """[rows, features] of each row, whatever the question: see `prominence`."""
        self._count = index.rows

    def search(self, text: str, count: int) -> list[tuple[int, float]]:
        """(row, score) of the `count` best rows that share a word with `text`, best first; equal ones in file order."""
        scores = self.scores(text)
        return [(row, float(scores[row])) for row in highest(scores, count) if scores[row] > 0]

    def scores(self, text: str) -> Floats:
        """[rows], 0 for those that share no word with `text`."""
        scores = np.zeros(self._count, np.float32)
        for term, weight in _weights(text).items():
            number = self._number.get(term)
            if number is not None:
                places = slice(self._starts[number], self._starts[number + 1])
                scores[self._rows[places]] += weight * self._scores[places].astype(np.float32)
        return scores


def _weights(text: str) -> Mapping[str, float]:
    """How much each stemmed term of a question counts."""
    terms = dict.fromkeys(search_terms(text))
    return {stem(term): _FUNCTION_WORD if term in FUNCTION_WORDS else 1.0 for term in terms}


def _build(index: VersionIndex, folder: Path) -> None:
    vocabulary: dict[str, int] = {}
    name, below, parameters = _Field(2, 0.3), _Field(1, 0.3), _Field(0.6, 0.6)
    sentence, text, passages = _Field(1, 0.3), _Field(1, 0.4), _Field(1, 0.4)
    features: list[tuple[float, ...]] = []
    for row in index.all_rows():
        public = public_name(row)
        qualifier, _, last = public.rpartition(".")
        name.add(last, vocabulary)
        below.add(qualifier.partition(".")[2], vocabulary)
        parameters.add(row.signature[:_LONGEST_SIGNATURE], vocabulary)
        sentence.add(summary(row.doc), vocabulary)
        text.add(row.doc, vocabulary)
        passages.add("\n".join(row.passages), vocabulary)
        features.append(features_of(row, public))
    parts = [field.weighted() for field in (name, below, parameters, sentence, text, passages)]
    terms, rows, weights = (np.concatenate([part[place] for part in parts]) for place in range(3))
    order = {term: number for number, term in enumerate(sorted(vocabulary))}
    numbers = np.array([order[term] for term in vocabulary], np.int64)
    pairs, places = np.unique(numbers[terms] * index.rows + rows, return_inverse=True)
    weights = np.bincount(places, weights, len(pairs))
    terms, rows = np.divmod(pairs, max(index.rows, 1))
    found_in = np.bincount(terms, minlength=len(vocabulary))
    rarity = np.log(1 + (index.rows - found_in + 0.5) / (found_in + 0.5))
    scores = weights / (_SATURATION + weights) * rarity[terms]
    (folder / "terms.txt").write_text("\n".join(order), encoding="utf-8")
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(found_in)]).astype(np.int64))
    np.save(folder / "rows.npy", rows.astype(np.min_scalar_type(index.rows)))
    np.save(folder / "scores.npy", scores.astype(np.float16))
    np.save(folder / "features.npy", np.array(features, np.float16).reshape(index.rows, len(FEATURES)))


def highest(scores: Floats, count: int) -> list[int]:
    """The places of the `count` highest scores, highest first; equal ones by place."""
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    ordered: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return ordered


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
