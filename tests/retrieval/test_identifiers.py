from __future__ import annotations

import pytest

from parallelmind.retrieval.corpus_rows import summary
from parallelmind.retrieval.keyword_search import search_terms, split_identifier


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("read_csv", ["read", "csv"]),
        ("MinMaxScaler", ["min", "max", "scaler"]),
        ("HTTPServer2Go", ["http", "server", "2", "go"]),
        ("__init__", ["init"]),
        ("float64", ["float", "64"]),
        ("数组排序", ["数", "组", "排", "序"]),
        ("naïve_Größe", ["naïve", "grösse"]),
        ("привет", ["привет"]),
        ("___", []),
    ],
)
def test_identifiers_are_split(word: str, parts: list[str]) -> None:
    assert split_identifier(word) == parts


def test_terms_of_a_text_hold_parts_and_whole_names() -> None:
    assert search_terms("Use pd.read_csv(x), not GroupBy!") == [
        *("use", "pd", "read", "csv", "read_csv", "x", "not", "group", "by", "groupby"),
    ]
    assert search_terms("") == []


@pytest.mark.parametrize(
    ("doc", "first"),
    [
        ("Sort it.  In place.\n\nMore.", "Sort it."),
        ("array(object, dtype=None,\n      copy=True)\n\nCreate an array.\n", "Create an array."),
        ("a.sort(axis=-1)\n\nSort an array in-place. Then go.", "Sort an array in-place."),
        ("No full stop\nover two lines\n\nMore.", "No full stop over two lines"),
        ("Uses e.g.this one. Yes.", "Uses e.g.this one."),
        ("排序。然后 more", "排序。然后 more"),
        ("   ", ""),
    ],
)
def test_the_summary_is_the_first_sentence(doc: str, first: str) -> None:
    assert summary(doc) == first
