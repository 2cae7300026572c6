"""Fixtures of the retrieval tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import write_small_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_small_corpus(tmp_path / "corpus")


@pytest.fixture
def store(corpus: Path) -> Iterator[CorpusStore]:
    opened = CorpusStore(corpus)
    yield opened
    opened.close()
