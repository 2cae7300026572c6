"""`batch_context_generator.py`: its flags, the forms of queries, the retrieval methods, and corpora on disk."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelmind.cli.main import main
from parallelmind.retrieval.dense_search import TogetherEmbedder
from tests.compatibility.command_lines import link_checkout, parsed, refusal, run_line
from tests.compatibility.contract import proves
from tests.compatibility.train_runs import write_jsonl
from tests.fake_openai import KEY, FakeOpenAI, Received, Reply
from tests.tasks.answering import read_rows

LINE = "python utils/RAGutils/queryResultByInfer/batch_context_generator.py"
NESTED = '{"<id>": {"queries": [{"query", "target_api"}], "original_data": {"target_dependency": {…}}}}'
OLD = [
    {"path": "box.paper.fold", "aliases": ["box.fold"], "doc": "Fold a sheet of paper along its middle."},
    {"path": "box.bool_", "aliases": [], "doc": "A scalar type."},
    {"path": "box.weigh", "doc": "Weigh a parcel in grams."},
]
NEW = [
    {
        "path": "box.paper.fold",
        "aliases": ["box.fold"],
        "doc": "Fold a sheet twice.",
        "type": "function",
        "signature": "(sheet, *, times=2)",
        "members": [],
    },
    *({"path": f"box.glue{n}", "aliases": [], "doc": f"Glue edges, way {n}. " + "word " * n} for n in range(14)),
]
FFT = [
    {"path": "scipy", "doc": "SciPy.", "type": "module", "members": ["fft"]},
    {"path": "scipy.fft.rfft2", "doc": "Two-dimensional transform."},
    {"path": "scipy.fft.fft", "doc": "Discrete transform."},
]
TOPICS = (("heavy", "weigh", "grams"), ("fold", "paper"), ("scalar", "type"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_jsonl(folder / "box" / "1.0.0.jsonl", OLD)
    write_jsonl(folder / "box" / "2.0.0.jsonl", NEW)
    write_jsonl(folder / "scipy" / "1.11.4.jsonl", FFT)
    write_jsonl(folder / "box" / "2.0.0.srccodes.jsonl", [{**NEW[0], "doc": "def fold(sheet): ..."}])
    return folder


def ask(api: str, text: str = "How?", **dependencies: str) -> dict[str, Any]:
    return {"id": "item", "query": text, "target_api": api, "dependencies": dependencies or {"box": "2.0.0"}}


class Asking:
    """Runs `parallelmind contexts` on flat queries; each run in a folder of its own."""

    def __init__(self, folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.corpus, self.capsys = folder, corpus, capsys
        self.runs, self.log = 0, ""

    def __call__(self, queries: Sequence[dict[str, Any]] | Path, *flags: object) -> list[dict[str, Any]]:
        self.runs += 1
        out = self.folder / f"run{self.runs}" / "contexts.jsonl"
        out.parent.mkdir()
        if not isinstance(queries, Path):
            queries = write_jsonl(out.parent / "queries.jsonl", list(queries))
        given = ["--queries_file", queries, "--corpus_path", self.corpus, "--output_file", out, "--workers", 0, *flags]
        assert main(["contexts", *map(str, given)]) == 0
        self.log = self.capsys.readouterr().err
        return read_rows(out)


@pytest.fixture
def contexts(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(tmp_path, corpus, capsys)


def names(row: dict[str, Any]) -> list[str]:
    return [document["name"] for document in row["documents"]]


@proves("contexts", LINE, "--queries_file", "--corpus_path", "--output_file", NESTED)
@proves("contexts", '"id": "<original id>_<index>"', '"dedup_key"', "--verbose")
@proves("corpus", "{corpus}/{import name}/{version}.jsonl", '{"path", "aliases", "doc"}')
def test_the_line_on_nested_queries(corpus: Path, contexts: Asking, tmp_path: Path) -> None:
    """The line serves five queries: ids with an index, a duplicate dropped and counted, a failure listed if asked."""
    asked = [{"query": "How?", "target_api": "box.fold"}, {"query": "Wie?", "target_api": "box.fold"}]
    items = {
        "一": {"queries": [*asked, asked[0]], "original_data": {"target_dependency": {"box": "1.0.0"}}},
        "0": {"queries": asked[:1], "original_data": {"target_dependency": {"box": "2.0.0"}}},
        "none": {"queries": asked[:1], "original_data": {"target_dependency": {"box": "3.0.0"}}},
    }
    (tmp_path / "queries.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    link_checkout(tmp_path)
    flags = "--queries_file queries.json --corpus_path corpus --output_file contexts.jsonl"
    done = run_line(f"{LINE} {flags}", cwd=tmp_path)
    rows = read_rows(tmp_path / "contexts.jsonl")
    assert [row["id"] for row in rows] == ["一_0", "一_1", "0_0", "none_0"]
    assert [(row["original_item_id"], row["query_index"]) for row in rows[:3]] == [("一", 0), ("一", 1), ("0", 0)]
    assert "5 queries = 1 duplicates + 4 contexts" in done.stderr
    assert (rows[3]["success"], rows[3]["context"]) == (False, "")
    assert "failed: row" not in done.stderr
    again = contexts(tmp_path / "queries.json", "--verbose")
    assert [row["dedup_key"] for row in again] == [row["dedup_key"] for row in rows]
    assert len({row["dedup_key"] for row in rows}) == 4
    assert "failed: row 4: the corpus has no box 3.0.0" in contexts.log


@proves("contexts", '{"id", "query", "target_api", "dependencies"}', '"dedup_key"', "the versions in dependencies")
@proves("corpus", '"type", "signature", "members"', '{"path", "aliases", "doc"}')
def test_flat_queries_and_versions(contexts: Asking) -> None:
    """One question in two versions is no duplicate, and each context has its own version's text and signature alone."""
    old, new = contexts([ask("box.fold", box="1.0.0"), {**ask("box.fold"), "id": 7}])
    assert [old["id"], new["id"]] == ["item_0", "7_0"]
    assert old["dedup_key"] != new["dedup_key"]
    assert "along its middle" in old["context"]
    assert "twice" not in old["context"]
    assert "twice" in new["context"]
    assert "(sheet, *, times=2)" in new["context"]
    assert [row["documents"][0]["version"] for row in (old, new)] == ["1.0.0", "2.0.0"]
    assert old["context_length"] == len(old["context"])
    fields = ("id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies")
    fields += ("retrieval_method", "context", "context_length", "retrieval_time", "success")
    assert tuple(old)[: len(fields)] == fields


@proves("contexts", "exact_api_match", "rag_string_match", "rag_fallback", "--enable_str_match", "--jump_exact_match")
def test_the_methods_in_order(contexts: Asking) -> None:
    """A path or alias is exact, a part of one is not; then, if asked for, renamed modules, likeness; last, search."""
    fft = {"scipy": "1.11.4"}
    queries = [
        ask("box.paper.fold", box="1.0.0"),
        ask("box.fold", box="1.0.0"),
        ask("box.bool", "scalar", box="1.0.0"),
        ask("scipy.fftpack.fft", "transform", **fft),
        ask("scipy.fft.rfft_2", "transform", **fft),
        ask("", "weigh a parcel", box="1.0.0"),
    ]
    plain = contexts(queries)
    exact = [row for row in plain if row["retrieval_method"] == "exact_api_match"]
    assert [names(row) for row in exact] == [["box.paper.fold"], ["box.fold"]]
    assert "rag_string_match" not in {row["retrieval_method"] for row in plain}
    assert (plain[5]["retrieval_method"], names(plain[5])) == ("rag_fallback", ["box.weigh"])
    matched = contexts(queries, "--enable_str_match")
    found = [row for row in matched if row["retrieval_method"] == "rag_string_match"]
    assert [(row["target_api"], names(row)) for row in found] == [
        ("box.bool", ["box.bool_"]),
        ("scipy.fftpack.fft", ["scipy.fft.fft"]),
        ("scipy.fft.rfft_2", ["scipy.fft.rfft2"]),
    ]
    jumped = contexts(queries[:2], "--jump_exact_match")
    assert {row["retrieval_method"] for row in jumped} == {"rag_fallback"}


@proves("contexts", "--fixed_docs_per_query", "--max_documents", "--max_tokens")
def test_how_much_a_context_holds(contexts: Asking, corpus: Path) -> None:
    """One document by default, as many as asked for, or what fits up to the most; never more tokens than allowed."""
    query = [ask("", "glue edges")]

    def count(*flags: object) -> int:
        return len(names(contexts(query, *flags)[0]))

    assert count() == 1
    assert count("--fixed_docs_per_query", 3) == 3
    assert count("--fixed_docs_per_query", 0) == 10
    assert count("--fixed_docs_per_query", 0, "--max_documents", 2) == 2
    write_jsonl(corpus / "long" / "1.0.0.jsonl", [{"path": "long.text", "doc": "many words here. " * 5000}])
    (cut,) = contexts([ask("long.text", long="1.0.0")])
    assert cut["truncated"]
    assert 3900 < cut["context_tokens"] <= 4000
    (short,) = contexts([ask("long.text", long="1.0.0")], "--max_tokens", 50)
    assert 30 < short["context_tokens"] <= 50


@proves("contexts", "--start_index", "--max_samples", "--corpus_type")
def test_which_queries_and_which_corpus(contexts: Asking) -> None:
    """The first two queries are left out, two are taken; source code is what the other kind of corpus gives."""
    queries = [{**ask("box.fold", f"question {n}"), "id": n} for n in range(6)]
    assert [row["original_item_id"] for row in contexts(queries)] == list(range(6))
    part = contexts(queries, "--start_index", 2, "--max_samples", 2)
    assert [row["query"] for row in part] == ["question 2", "question 3"]
    (source,) = contexts(queries[:1], "--corpus_type", "srccodes")
    assert "def fold(sheet)" in source["context"]
    (documented,) = contexts(queries[:1], "--corpus_type", "docstring")
    assert "Fold a sheet twice." in documented["context"]


def meaning(texts: Sequence[str]) -> list[list[float]]:
    """A vector for each text, by the topics its words are of."""
    found = [[float(sum(word in text.lower() for word in topic)) for topic in TOPICS] for text in texts]
    return [[value + 0.01 for value in vector] for vector in found]


class Embeddings(FakeOpenAI):
    def take(self, received: Received) -> Reply:
        self.requests.append(received)
        vectors = [{"index": n, "embedding": vector} for n, vector in enumerate(meaning(received.body["input"]))]
        body = {"object": "list", "model": "m", "data": vectors, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        return Reply(body=json.dumps(body).encode())

    def answered(self) -> None:
        """Nothing waits for these."""


@proves("contexts", "--embedding_source")
def test_ranking_by_meaning(contexts: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """What words do not find, embeddings do: of Together AI (a local address here) or of a local model (a stand-in)."""
    query = [ask("", "how heavy is it", box="1.0.0")]
    assert "shares a word with the query" in contexts(query)[0]["error"]
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    with Embeddings() as server:
        monkeypatch.setitem(TogetherEmbedder.__init__.__kwdefaults__, "base_url", server.base_url)
        (row,) = contexts(query, "--embedding_source", "togetherai")
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
        assert {request.path for request in server.requests} == {"/v1/embeddings"}
    assert (names(row), row["retrieval_method"]) == (["box.weigh"], "rag_fallback")
    loaded = []

    class StandIn:
        def __init__(self, name: str, device: str) -> None:
            loaded.append(name)

        def encode(self, texts: list[str], **_: Any) -> np.ndarray[Any, Any]:
            vectors = np.array(meaning(texts))
            return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=StandIn))
    assert names(contexts(query, "--embedding_source", "local")[0]) == ["box.weigh"]
    assert names(contexts(query, "--ranking", "dense")[0]) == ["box.weigh"]  # local is the default
    assert len(loaded) == 2


@proves("contexts", "--queries_file", "--corpus_path", "--output_file", "--max_documents", "--max_tokens")
@proves(
    "contexts",
    "--fixed_docs_per_query",
    "--start_index",
    "--corpus_type",
    "--enable_str_match",
    "--jump_exact_match",
    "--max_samples",
    "--verbose",
)
def test_what_is_required_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Three flags are required; the parser has the documented defaults."""
    files = {"--queries_file": "q", "--corpus_path": "c", "--output_file": "o"}
    for lacking in files:
        assert lacking in refusal("contexts", files, lacking, capsys)
    chosen = parsed("contexts", *(word for pair in files.items() for word in pair))
    numbers = {"max_documents": 10, "max_tokens": 4000, "fixed_docs_per_query": 1, "start_index": 0}
    assert {name: chosen[name] for name in numbers} == numbers
    assert (chosen["corpus_type"], chosen["max_samples"]) == ("docstring", None)
    assert not any(chosen[name] for name in ("enable_str_match", "jump_exact_match", "verbose"))
