from __future__ import annotations

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.versions import choose_version, sorted_versions

HELD = ["1.9.0", "1.16.6", "1.26.3", "1.26.4", "2.0.0rc1"]


@pytest.mark.parametrize(
    ("spelled", "version"),
    [
        ("1.26.4", "1.26.4"),
        ("==1.26.4", "1.26.4"),
        (" == 1.26.4 ", "1.26.4"),
        ("v1.26.4", "1.26.4"),
        ("1.9", "1.9.0"),
        ("1.26", "1.26.4"),
        ("1", "1.26.4"),
        ("1.26.*", "1.26.4"),
        ("==1.26.*", "1.26.4"),
        ("~=1.26.0", "1.26.4"),
        (">=1.10,<1.20", "1.16.6"),
        ("<1.26.4", "1.26.3"),
        ("*", "1.26.4"),
        ("latest", "1.26.4"),
        ("2.0.0rc1", "2.0.0rc1"),
        ("1.17", None),
        ("==1.26", None),  # 1.26.0 exactly, as in pip
        ("1.26.5", None),
        ("1.2", None),  # no part of a number
        (">2.1", None),
    ],
)
def test_what_a_spelling_means(spelled: str, version: str | None) -> None:
    assert choose_version(spelled, HELD) == version


@pytest.mark.parametrize("spelled", ["newest", "git+https://x", "1.26.4 ; python>3", "数"])
def test_what_is_no_version(spelled: str) -> None:
    with pytest.raises(DataError, match="is not a version; write one such as"):
        choose_version(spelled, HELD)


def test_versions_are_sorted_as_releases() -> None:
    assert sorted_versions(["1.26.4", "1.9.0", "main", "1.16.6"]) == ["main", "1.9.0", "1.16.6", "1.26.4"]


def test_dependencies_by_import_name_and_by_distribution(store: CorpusStore) -> None:
    resolved = store.resolve({"Box_Dist": "2", "lid": "0.1", "torch": "2.3.0", "box": "9.9.9"})
    assert resolved.versions == {"box": "2.0.0", "lid": "0.1"}
    assert "parallelmind corpus build torch==2.3.0 --corpus_path" in resolved.missing["torch"]
    assert "the corpus has no box 9.9.9 (it has 1.2.3, 2.0.0)" in resolved.missing["box"]
