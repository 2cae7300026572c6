"""`parallelmind contexts` and `parallelmind evaluate`, as a user runs them."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from parallelmind.answering.context_rows import parse_context_row
from parallelmind.cli.main import main
from parallelmind.io.jsonl import read_lines
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from tests.jobs.ledgers import stored_results
from tests.retrieval.small_corpus import NEW, OLD, row, write_small_corpus

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "utils" / "RAGutils" / "queryResultByInfer" / "batch_context_generator.py"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_small_corpus(tmp_path / "corpus")


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    apis = ["box.fold", "box.weigh", "box.tape", "", "box.fold"]
    items: dict[str, Any] = {
        f"item {number}": {
            "queries": [{"query": f"怎么 fold paper {api}? 😀", "target_api": api} for api in apis],
            "original_data": {"target_dependency": {"box": version}},
        }
        for number, version in enumerate([OLD, NEW])
    }
    items["bad"] = {
        "queries": [{"query": "q", "target_api": 3}, "no"],
        "original_data": {"target_dependency": {"box": "1"}},
    }
    items["torch"] = {
        "queries": [{"query": "q", "target_api": "torch.add"}],
        "original_data": {"target_dependency": {"torch": "2.0"}},
    }
    path = tmp_path / "queries.json"
    path.write_text(json.dumps(items, indent=1), encoding="utf-8")
    return path


def contexts(queries: Path, corpus: Path, out: Path, *flags: str) -> int:
    flags = ("--workers", "0", *flags)
    return main(
        ["contexts", "--queries_file", str(queries), "--corpus_path", str(corpus), "--output_file", str(out), *flags]
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [row | {"retrieval_time": 0} for row in rows_of(path)]


def test_every_query_becomes_one_row_in_order(
    queries: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "contexts.jsonl"
    assert contexts(queries, corpus, out, "--verbose") == 0
    rows = rows_of(out)
    assert [(row["id"], row["retrieval_method"]) for row in rows] == [
        ("item 0_0", "exact_api_match"),
        ("item 0_1", "exact_api_match"),
        ("item 0_2", "exact_api_match"),
        ("item 0_3", "rag_fallback"),
        ("item 1_0", "exact_api_match"),
        ("item 1_1", "absent"),
        ("item 1_2", "absent"),
        ("item 1_3", "rag_fallback"),
        ("bad_0", None),
        ("bad_1", None),
        ("torch_0", None),
    ]
    required = ["id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies"]
    required += ["retrieval_method", "context", "context_length", "retrieval_time", "success"]
    assert all(list(row)[: len(required)] == required for row in rows)
    assert all(row["context_length"] == len(row["context"]) for row in rows)
    assert rows[5]["absent"]["last_version"] == OLD
    assert rows[5]["absent"]["moved_to"] == "box.scales.weigh"
    assert [row["success"] for row in rows[8:]] == [False] * 3
    assert "parallelmind corpus build torch==2.0" in rows[10]["error"]
    log = capsys.readouterr().err
    assert "13 queries = 2 duplicates + 11 contexts; contexts = 4 exact_api_match" in log
    statistics = json.loads((tmp_path / "contexts.jsonl.stats.json").read_text(encoding="utf-8"))
    assert (statistics["duplicates"], statistics["errors"], statistics["methods"]["absent"]) == (2, 3, 2)


def test_the_answer_stage_reads_every_row(queries: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out)
    parsed = [parse_context_row(line) for line in read_lines(out)]
    assert [row.success for row in parsed] == [row["success"] for row in rows_of(out)]


def test_both_forms_of_queries_give_the_same_contexts(queries: Path, corpus: Path, tmp_path: Path) -> None:
    nested, flat = tmp_path / "nested.jsonl", tmp_path / "flat.jsonl"
    contexts(queries, corpus, nested)
    rows = [row for row in rows_of(nested) if row["success"]]
    fields = ("id", "query", "target_api", "dependencies")
    lines = [json.dumps({name: row[name] for name in fields}) for row in rows]
    (tmp_path / "flat_queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    contexts(tmp_path / "flat_queries.jsonl", corpus, flat)
    assert [row["context"] for row in rows_of(flat)] == [row["context"] for row in rows]
    assert [row["dedup_key"] for row in rows_of(flat)] == [row["dedup_key"] for row in rows]


def test_workers_give_the_rows_of_one_process(queries: Path, corpus: Path, tmp_path: Path) -> None:
    contexts(queries, corpus, tmp_path / "one.jsonl")
    assert contexts(queries, corpus, tmp_path / "two.jsonl", "--workers", "2") == 0
    assert untimed(tmp_path / "two.jsonl") == untimed(tmp_path / "one.jsonl")


def test_a_missing_version_is_served_once_the_corpus_has_it(queries: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out)
    file = corpus_file(corpus, "torch", "2.0.0")
    file.parent.mkdir()
    write_corpus(file, [row("torch.add", "Adds.", distribution="torch")])
    contexts(queries, corpus, out)
    assert not rows_of(out)[-1]["success"]
    contexts(queries, corpus, out, "--retry_failed")
    assert rows_of(out)[-1]["retrieval_method"] == "exact_api_match"
    assert len(rows_of(out)) == 11


def test_a_part_of_the_queries(queries: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out, "--start_index", "3", "--max_samples", "3")
    # Duplicates are looked for among those that are taken.
    assert [row["id"] for row in rows_of(out)] == ["item 0_3", "item 0_4", "item 1_0"]


def test_other_settings_take_a_new_name_and_edited_queries_do_not(
    queries: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out)
    before = out.read_bytes()
    assert contexts(queries, corpus, out, "--max_tokens", "9") == 0
    said = capsys.readouterr().err
    assert "max_tokens was 4000, is now 9" in said
    assert f"contexts are in {out.with_name('contexts_2.jsonl')}" in said
    assert out.with_name("contexts_2.jsonl.stats.json").exists()
    assert out.read_bytes() == before
    kept = {row["id"]: row for row in rows_of(out) if row["id"].startswith("item 1")}
    queries.write_text(queries.read_text(encoding="utf-8").replace("item 0", "item 00"), encoding="utf-8")
    assert contexts(queries, corpus, out) == 0
    assert f"{queries} was edited since" in capsys.readouterr().err
    rows = {row["id"]: row for row in rows_of(out)}
    assert next(iter(rows)) == "item 00_0"
    assert kept
    assert {name: rows[name] for name in kept if rows[name]["success"]} == {
        name: row for name, row in kept.items() if row["success"]
    }
    assert contexts(queries, corpus, out, "--max_samples", "1") == 0
    assert f"contexts are in {out.with_name('contexts_3.jsonl')}" in capsys.readouterr().err
    assert {row["id"] for row in rows_of(out)} == rows.keys()


def test_queries_may_be_compressed_or_come_through_a_pipe_and_the_contexts_are_compressed(
    queries: Path, corpus: Path, tmp_path: Path
) -> None:
    contexts(queries, corpus, plain := tmp_path / "plain.jsonl")
    packed, pipe = tmp_path / "queries.json.gz", tmp_path / "pipe"
    packed.write_bytes(gzip.compress(queries.read_bytes()))
    assert contexts(packed, corpus, out := tmp_path / "contexts.jsonl.gz") == 0
    os.mkfifo(pipe)
    feed = threading.Thread(target=lambda: pipe.write_bytes(queries.read_bytes()))
    feed.start()
    assert contexts(pipe, corpus, piped := tmp_path / "piped.jsonl") == 0
    feed.join()

    def told(content: bytes) -> list[dict[str, Any]]:
        return [json.loads(line) | {"retrieval_time": 0} for line in content.splitlines()]

    assert told(gzip.decompress(out.read_bytes())) == told(plain.read_bytes()) == told(piped.read_bytes())


def test_other_queries_through_a_pipe_are_another_job(queries: Path, corpus: Path, tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "contexts.jsonl"
    os.mkfifo(pipe)
    content = queries.read_text(encoding="utf-8")

    def run(text: str) -> None:
        feed = threading.Thread(target=pipe.write_text, args=(text, "utf-8"))
        feed.start()
        assert contexts(pipe, corpus, out) == 0
        feed.join()

    run(content)
    first = out.read_bytes()
    run(content.replace("fold paper", "glue wood").replace("torch", "jax").replace('"q"', '"r"'))
    assert out.read_bytes() == first
    assert len(rows_of(out.with_name("contexts_2.jsonl"))) == len(rows_of(out))


def test_compressed_queries_that_are_edited_are_the_same_job(queries: Path, corpus: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "queries.json.gz", tmp_path / "contexts.jsonl"
    packed.write_bytes(gzip.compress(queries.read_bytes()))
    contexts(packed, corpus, out)
    packed.write_bytes(gzip.compress(queries.read_bytes().replace(b"fold paper", b"glue wood")))
    contexts(packed, corpus, out)
    assert "glue wood" in out.read_text(encoding="utf-8")
    assert not out.with_name("contexts_2.jsonl").exists()
    assert len(list((tmp_path / "contexts.jsonl.job").glob("queries.*.input"))) == 1


def test_what_another_run_reads_is_not_removed(queries: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "contexts.jsonl"
    expansion = tmp_path / "contexts.jsonl.job" / "queries-other"
    expansion.mkdir(parents=True)
    other = tmp_path / "contexts_2.jsonl.job"
    other.mkdir()
    with FileLock(other / "lock"):
        contexts(queries, corpus, out)
        assert expansion.exists()
    contexts(queries, corpus, out)
    assert not expansion.exists()


def test_compat_is_the_looser_matching(queries: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out, "--compat")
    rows = {row["id"]: row for row in rows_of(out)}
    # Blind to versions: the second item's queries have the texts of the first one's.
    assert [name for name in rows if name.startswith("item 1")] == []
    assert rows["item 0_0"]["retrieval_method"] == "exact_api_match"


def test_a_cut_context_says_so(queries: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "contexts.jsonl"
    contexts(queries, corpus, out, "--max_tokens", "20")
    cut = [row for row in rows_of(out) if row["success"] and row["truncated"]]
    assert cut
    assert all(row["context_tokens"] <= 20 for row in cut)
    assert f"{len(cut)} contexts were cut at 20 tokens of tiny" in capsys.readouterr().err


def test_source_code_corpora(queries: Path, tmp_path: Path) -> None:
    sources = write_small_corpus(tmp_path / "sources", "srccodes")
    assert contexts(queries, sources, tmp_path / "no.jsonl") == 1
    assert contexts(queries, sources, tmp_path / "yes.jsonl", "--corpus_type", "srccodes") == 0
    assert rows_of(tmp_path / "yes.jsonl")[0]["retrieval_method"] == "exact_api_match"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--max_documents", "0"], 1, "--max_documents is 0"),
        (["--start_index", "-1"], 1, "--start_index is -1"),
        (["--max_samples", "0"], 1, "--max_samples is 0"),
        (["--fixed_docs_per_query", "11"], 1, "above --max_documents 10"),
        (["--ranking", "bm25", "--embedding_source", "local"], 1, "uses no embeddings"),
        (["--corpus_type", "docs"], 2, "--corpus_type"),
        (["--enable_string_match"], 2, "--enable_str_match"),
        (["--corpus_path", "nowhere"], 1, "nowhere is not a folder"),
        (["--queries_file", "nowhere.json"], 1, "nowhere.json"),
        (["--tokenizer", "./nowhere"], 1, "--tokenizer"),
    ],
)
def test_wrong_use_is_one_line(
    queries: Path,
    corpus: Path,
    tmp_path: Path,
    flags: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        found = contexts(queries, corpus, tmp_path / "out.jsonl", *flags)
    except SystemExit as stop:
        found = int(str(stop.code))
    error = capsys.readouterr().err
    assert found == code
    assert words in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    apis = ["box.fold", "box.weigh", "box.glue", ""]
    with many.open("w", encoding="utf-8") as file:
        for number in range(3000):
            fields = {
                "id": number,
                "query": f"paper {number}",
                "target_api": apis[number % 4],
                "dependencies": {"box": NEW},
            }
            file.write(json.dumps(fields) + "\n")
    out = tmp_path / "out.jsonl"
    flags = ["--queries-file", str(many), "--corpus-path", str(corpus), "--output-file", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(SCRIPT), *flags], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while process.poll() is None and not stored_results(out) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stored_results(out), "it was killed before it had stored a row"
    assert not out.exists(), "it was done before it was killed"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(out)] == [f"{number}_0" for number in range(3000)]
    contexts(many, corpus, tmp_path / "whole.jsonl")
    assert untimed(out) == untimed(tmp_path / "whole.jsonl")


def test_evaluate_prints_and_writes_the_numbers(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def label(api: str, method: str, *expected: str, query: str = "q") -> str:
        fields = {"query": query, "target_api": api, "dependencies": {"box": NEW}, "method": method}
        return json.dumps(fields | {"expected": list(expected)})

    lines = [
        label("box.fold", "exact_api_match", "box.paper.fold"),
        label("box.weigh", "absent"),
        label("", "rag_fallback", "box.glue", query="glue two edges"),
        label("box.Crate.opn", "rag_string_match", "box.Crate.open"),
    ]
    path, numbers = tmp_path / "labelled.jsonl", tmp_path / "numbers.json"
    path.write_text("\n".join(lines), encoding="utf-8")
    flags = ["evaluate", "--queries", str(path), "--corpus_path", str(corpus), "--json", str(numbers)]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "3 labelled queries, 3 served right" in printed
    assert "1 labelled rag_string_match left out" in printed
    assert "2 called exact_api_match, 1 of them wrongly (precision 50.0%)" in printed
    content = json.loads(numbers.read_text(encoding="utf-8"))
    assert content["retrieval"]["hits"] == {"hit@1": 1.0, "hit@5": 1.0, "hit@10": 1.0}
    assert content["retrieval"]["methods"]["absent"]["precision"] == 1.0
    assert main([*flags, "--enable_str_match"]) == 0
    assert "4 labelled queries, 4 served right" in capsys.readouterr().out
    assert main([*flags, "--json", str(path)]) == 1
    assert "--json is the input itself" in capsys.readouterr().err
