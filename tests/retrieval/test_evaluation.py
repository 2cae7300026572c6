from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.context_text import Context, Document
from parallelmind.retrieval.evaluation import evaluate, read_labelled
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.renames import load_renames
from parallelmind.retrieval.retriever import ABSENT, EXACT, FALLBACK, METHODS, Retrieval
from parallelmind.retrieval.statistics import collect_context_statistics
from parallelmind.retrieval.store import CorpusStore
from parallelmind.retrieval.versions import sort_key
from tests.retrieval.small_corpus import OLD

PARTS = ("dev", "test")
EXAMPLES = Path(__file__).parents[2] / "examples" / "retrieval"


class Scripted:
    """Answers with given methods and rows."""

    def __init__(self, *answers: tuple[str, list[int]]) -> None:
        self._answers = iter(answers)

    def retrieve(self, query: Query) -> Retrieval:
        method, rows = next(self._answers)
        documents = [Document("box", OLD, row, "") for row in rows]
        return Retrieval(method=method, context=Context("", documents, False, None))


def label(method: str, *expected: str, **more: object) -> dict[str, object]:
    row = {"query": "q", "target_api": "box.x", "dependencies": {"box": OLD}, "method": method}
    return row | {"expected": list(expected)} | more


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_scores_of_known_answers(store: CorpusStore, tmp_path: Path) -> None:
    path = write(
        tmp_path / "l.jsonl",
        label(EXACT, "box.fold"),  # right, by its alias
        label(EXACT, "box.fold"),  # the wrong document
        label(EXACT, "box.fold"),  # not called exact
        label(ABSENT),  # right
        label(ABSENT),  # called exact: a silent neighbour
        label(FALLBACK, "box.weigh"),  # rank 1
        label(FALLBACK, "box.weigh"),  # rank 4
        label(FALLBACK, "box.weigh"),  # not found
    )
    answers = Scripted(
        *[(EXACT, [4]), (EXACT, [5]), (FALLBACK, [4]), (ABSENT, []), (EXACT, [6])],
        *[(FALLBACK, [6, 1]), (FALLBACK, [0, 1, 2, 6]), (FALLBACK, [0, 1])],
    )
    report = evaluate(answers.retrieve, store, read_labelled(path))
    exact, absent = report.methods[EXACT], report.methods[ABSENT]
    assert (exact.expected, exact.given, exact.right) == (3, 3, 1)
    assert (exact.precision, exact.recall) == (1 / 3, 1 / 3)
    assert (absent.precision, absent.recall) == (1.0, 0.5)
    assert report.hits == {1: 1 / 3, 5: 2 / 3, 10: 2 / 3}
    assert report.mrr == (1 + 1 / 4) / 3
    assert (report.queries, report.right) == (8, 3)
    assert report.methods["rag_string_match"].precision is None
    assert json.loads(json.dumps(report.fields()))["hits"]["hit@5"] == 2 / 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (label("guess"), '"method" is a text'),
        (label(EXACT), '"expected" is empty'),
        (label(EXACT, "x") | {"expected": "x"}, "expected a list of API names"),
        (label(EXACT, "x") | {"query": ""}, '"query" is empty'),
        (label(EXACT, "x") | {"queries": [{"query": "a"}, {"query": "b"}]}, 'line 1 has "queries"'),
    ],
)
def test_wrong_labels_are_told(tmp_path: Path, row: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_labelled(write(tmp_path / "l.jsonl", row))


def test_the_committed_labels_are_enough_and_various() -> None:
    rows = read_labelled(EXAMPLES / "labelled.jsonl")
    versions = {(name, version) for row in rows for name, version in row.query.dependencies.items()}
    assert len(rows) >= 200
    assert len(versions) >= 6
    assert all(Counter(row.method for row in rows)[method] >= 10 for method in METHODS)
    assert "numpy.bool" in {row.query.target_api for row in rows if row.method == ABSENT}


def test_the_labels_by_hand_agree_with_the_table_of_removals() -> None:
    table = load_renames()
    for row in read_labelled(EXAMPLES / "handwritten.jsonl"):
        name = table.spelled_out(row.query.target_api)
        (version,) = row.query.dependencies.values()
        if (removal := table.removed.get(name)) is not None:
            gone = sort_key(version) >= sort_key(removal.removed_in)
            assert (row.method == ABSENT) == gone, name
            if row.method == ABSENT and row.moved_to is not None:
                assert removal.use == row.moved_to, name


def test_statistics_reconcile(tmp_path: Path) -> None:
    good = {"success": True, "retrieval_time": 0.5, "context_length": 10, "truncated": False}
    rows = [
        good | {"retrieval_method": EXACT, "truncated": True},
        good | {"retrieval_method": ABSENT, "context_length": 30},
        {"success": False, "retrieval_time": 0.5, "retrieval_method": None, "error": "no torch"},
    ]
    path = write(tmp_path / "c.jsonl", *rows)
    found = collect_context_statistics(path, queries=5, duplicates=2)
    assert found.contexts == found.queries - found.duplicates == sum(found.methods.values()) + found.errors
    assert (found.methods[EXACT], found.methods[ABSENT], found.methods[FALLBACK]) == (1, 1, 0)
    assert found.error_reasons == {"no torch": 1}
    assert (found.truncated, found.mean_context_length, found.mean_retrieval_time) == (1, 20.0, 0.5)


def test_ranked_queries_are_counted_by_part_and_what_fails_counts_as_not_found(
    store: CorpusStore, tmp_path: Path
) -> None:
    rows = [label(FALLBACK, "box.weigh", kind="asked", part=part) for part in ("dev", "test", "test")]
    answers = Scripted((FALLBACK, [6]), (FALLBACK, [0, 6]))

    def retrieve(query: Query) -> Retrieval:
        if query.original_item_id == "lost":
            raise DataError("no such version")
        return answers.retrieve(query)

    rows[2] |= {"id": "lost"}
    report = evaluate(retrieve, store, read_labelled(write(tmp_path / "l.jsonl", *rows)))
    assert {name: (part.queries, part.hits[1], part.mrr) for name, part in report.parts.items()} == {
        "dev, asked": (1, 1.0, 1.0),
        "test, asked": (2, 0.0, 0.25),
    }
    assert report.errors == {"no such version": 1}
    assert report.fields()["parts"]["test, asked"]["hits"]["hit@5"] == 0.5


def test_the_paraphrased_questions_name_no_api_and_are_split_over_all_packages() -> None:
    rows = read_labelled(EXAMPLES / "paraphrased.jsonl")
    packages = {
        part: {*(name for row in rows if row.part == part for name in row.query.dependencies)} for part in PARTS
    }
    assert packages["dev"] >= packages["test"]
    assert len(packages["test"]) >= 8
    assert Counter(row.part for row in rows)["test"] >= 150
    for row in rows:
        words = set(re.findall(r"\w+", row.query.query))
        assert not words & {name.rpartition(".")[2] for name in row.expected}, row.query.query
