"""The bundled corpora and questions show what they are there to show."""

from __future__ import annotations

from pathlib import Path

import pytest

import parallelmind
from parallelmind.retrieval.expansion import expand_queries, load_query
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import Retrieval, Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore

ASSETS = Path(parallelmind.__file__).parent / "assets" / "rag"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Query, Retrieval]]:
    folder = tmp_path_factory.mktemp("demo")
    store = CorpusStore(ASSETS / "corpus", index_path=folder / "index")
    retriever = Retriever(store, RetrieverSettings(max_tokens=0))
    expansion = expand_queries(ASSETS / "queries.json", folder)
    queries = [load_query(line) for line in expansion.path.read_bytes().splitlines()]
    found = {(query.dependencies["numpy"], query.target_api): (query, retriever.retrieve(query)) for query in queries}
    assert len(found) == len(queries) == expansion.queries
    store.close()
    return found


@pytest.mark.parametrize(
    ("version", "api", "method"),
    [
        ("1.16.6", "numpy.bool", "exact_api_match"),
        ("1.26.4", "numpy.bool", "absent"),
        ("1.16.6", "numpy.asscalar", "exact_api_match"),
        ("1.26.4", "numpy.asscalar", "absent"),
        ("1.16.6", "numpy.random.default_rng", "absent"),
        ("1.26.4", "numpy.random.default_rng", "exact_api_match"),
        ("1.16.6", "numpy.broadcast_shapes", "absent"),
        ("1.26.4", "numpy.linspace", "exact_api_match"),
        ("1.26.4", "", "rag_fallback"),
    ],
)
def test_how_a_question_is_served(
    served: dict[tuple[str, str], tuple[Query, Retrieval]], version: str, api: str, method: str
) -> None:
    assert served[version, api][1].method == method


def test_the_versions_document_different_things(served: dict[tuple[str, str], tuple[Query, Retrieval]]) -> None:
    def text(version: str, api: str) -> str:
        return served[version, api][1].context.text

    assert "equal_nan" in text("1.26.4", "numpy.unique")
    assert "equal_nan" not in text("1.16.6", "numpy.unique")
    assert "casting" in text("1.26.4", "numpy.concatenate")
    assert "casting" not in text("1.16.6", "numpy.concatenate")
    assert "method" in text("1.26.4", "numpy.percentile").split("Parameters")[0]
    assert "numpy.tile" in text("1.16.6", "")


def test_the_rows_come_with_their_licence_and_stay_small() -> None:
    assert "NumPy Developers" in (ASSETS / "LICENSE.numpy.txt").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 300_000
