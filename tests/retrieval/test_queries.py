from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelmind.errors import DataError
from parallelmind.retrieval.expansion import expand_queries, load_query, remove_other_expansions
from parallelmind.retrieval.queries import Query, api_name, dedup_key, expand_item
from parallelmind.retrieval.query_files import read_items

NESTED = {
    "7": {
        "queries": [
            {"query": "How to sort?", "target_api": "numpy.sort(a, axis=0)"},
            {"query": "怎样 😀", "target_api": None},
        ],
        "original_data": {"target_dependency": {"numpy": "1.16.6"}, "other": 1},
    },
    "б": {"queries": [{"query": "q"}], "original_data": {"target_dependency": {"pandas": "2"}}},
}
FLAT = [
    {"id": "7", "query": "How to sort?", "target_api": "`numpy.sort`", "dependencies": {"numpy": "1.16.6"}},
    {"id": 0, "query": "q", "target_api": "", "dependencies": {"pandas": "2"}},
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def expanded(path: Path, folder: Path, **options: Any) -> list[Query]:
    expansion = expand_queries(path, folder, **options)
    return [load_query(line) for line in expansion.path.read_bytes().splitlines()]


def test_nested_queries_expand_in_order(tmp_path: Path) -> None:
    rows = expanded(write(tmp_path / "q.json", json.dumps(NESTED)), tmp_path)
    assert [row.id for row in rows] == ["7_0", "7_1", "б_0"]
    assert rows[0].fields() == {
        "id": "7_0",
        "original_item_id": "7",
        "query_index": 0,
        "dedup_key": dedup_key("How to sort?", "numpy.sort", {"numpy": "1.16.6"}),
        "query": "How to sort?",
        "target_api": "numpy.sort",
        "dependencies": {"numpy": "1.16.6"},
    }
    assert (rows[1].query, rows[1].target_api) == ("怎样 😀", "")


def test_flat_queries_expand_to_the_same_rows(tmp_path: Path) -> None:
    rows = expanded(write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, FLAT))), tmp_path)
    assert [row.id for row in rows] == ["7_0", "0_0"]
    assert rows[1].original_item_id == 0
    nested = expanded(write(tmp_path / "q.json", json.dumps(NESTED)), tmp_path)
    assert rows[0] == nested[0]


def test_the_dedup_key_is_of_query_api_and_versions_in_any_order() -> None:
    assert dedup_key("q", "a", {"x": "1", "y": "2"}) == dedup_key("q", "a", {"y": "2", "x": "1"})
    assert dedup_key("q", "a", {"x": "1"}) == "723b77aacacbf7576b7e3854089d9704"
    different = {dedup_key("q", "a", {"x": "1"}), dedup_key("q", "a", {"x": "2"}), dedup_key("qa", "", {"x": "1"})}
    assert len(different) == 3


def test_duplicates_are_dropped_and_counted_and_versions_keep_queries_apart(tmp_path: Path) -> None:
    row = FLAT[0]
    other = row | {"dependencies": {"numpy": "1.26.4"}}
    path = write(tmp_path / "q.jsonl", "\n".join(json.dumps(r) for r in (row, other, row | {"id": "again"}, row)))
    expansion = expand_queries(path, tmp_path / "job")
    assert (expansion.queries, expansion.duplicates) == (4, 2)
    assert len(expansion.path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([], "is a list"),
        ({"query": "q"}, '"dependencies" is missing'),
        ({"query": "q", "dependencies": {}}, "is empty"),
        ({"query": "q", "dependencies": {"numpy": 1.2}}, '"numpy" is a number (1.2)'),
        ({"query": "q", "dependencies": {"numpy": " "}}, "expected a version as text"),
        ({"target_api": "x", "dependencies": {"a": "1"}}, 'no "query"'),
        ({"query": 5, "dependencies": {"a": "1"}}, '"query" is a number (5)'),
        ({"query": "q", "target_api": ["x"], "dependencies": {"a": "1"}}, '"target_api" is a list'),
        ({"query": "q", "target_api": "a." * 600, "dependencies": {"a": "1"}}, "has 1,200 characters"),
        ({"id": True, "query": "q", "dependencies": {"a": "1"}}, '"id" is a boolean'),
        ({"queries": []}, '"queries" is a list'),
        ({"queries": ["q"], "original_data": {"target_dependency": {"a": "1"}}}, '"queries"[0] is a text'),
        ({"queries": [{"query": "q"}]}, '"target_dependency" is missing'),
    ],
)
def test_a_wrong_query_is_a_row_that_says_what_is_wrong(item: Any, words: str) -> None:
    (query,) = expand_item(item, 3, "line 9")
    assert query.error is not None
    assert words in query.error
    assert query.error.startswith("line 9")


def test_good_queries_beside_a_wrong_one_are_kept() -> None:
    item = {"queries": [{"query": "a"}, {"query": None}, {"query": "c"}], "dependencies": {"numpy": "1"}}
    rows = list(expand_item(item, "x", "line 1"))
    assert [(row.id, row.error is None) for row in rows] == [("x_0", True), ("x_1", False), ("x_2", True)]
    assert rows[1].dependencies == {"numpy": "1"}


def test_broken_lines_are_rows(tmp_path: Path) -> None:
    rows = expanded(write(tmp_path / "q.jsonl", '{"id": "1", "query"\n\n[1]\n' + json.dumps(FLAT[0])), tmp_path)
    assert [row.id for row in rows] == ["0_0", "1_0", "7_0"]
    assert "line 1 is not valid JSON" in (rows[0].error or "")
    assert "line 3 is a list" in (rows[1].error or "")


def test_start_index_and_max_samples_count_queries(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", json.dumps(NESTED))
    assert [row.id for row in expanded(path, tmp_path, start_index=1, max_samples=1)] == ["7_1"]
    assert [row.id for row in expanded(path, tmp_path, start_index=1)] == ["7_1", "б_0"]
    assert expanded(path, tmp_path, start_index=9) == []


def test_an_expansion_is_reused_until_the_file_is_edited(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", json.dumps(NESTED))
    first = expand_queries(path, tmp_path / "job")
    stamp = first.path.stat().st_mtime_ns
    assert expand_queries(path, tmp_path / "job").path.stat().st_mtime_ns == stamp
    write(path, json.dumps(NESTED | {"new": NESTED["7"]}))
    second = expand_queries(path, tmp_path / "job")
    assert second.path != first.path
    assert second.queries == 5
    remove_other_expansions(second)
    assert not first.path.exists()
    assert second.path.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ITEMS = st.dictionaries(st.text(max_size=6), st.dictionaries(st.text(max_size=4), JSON, max_size=4), max_size=6)


@settings(max_examples=40)
@given(items=ITEMS, indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans(), chunk=st.integers(1, 40))
def test_streaming_reads_what_json_load_reads(
    items: dict[str, Any], indent: int | None, ascii_only: bool, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # An id that is also the name of a field would make it the first row of a JSONL file.
    items = {f"#{key}": value for key, value in items.items()}
    path = tmp_path_factory.mktemp("items") / "q.json"
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    found = [(item.id, item.value) for item in read_items(path, chunk_bytes=chunk)]
    assert found == list(json.loads(path.read_text(encoding="utf-8")).items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"queries": []}\n "b": {}}', "line 2: expected '}'"),
        ('{"a": {"queries": []},\n\n "b": {"queries": tru}}', "not valid JSON at line 3"),
        ('{"a": {"queries": []}, 5: {}}', "expected an id in quotes"),
        ('{"a": {"queries": []}} trailing', "expected the end of the file"),
        ('{"a": {"queries": ["unclosed}}', "Unterminated string"),
        ('{"a": {"queries": []},\n "b": {"n": ' + "1" * 5000 + "}}", "at line 2: Exceeds the limit"),
        ('[{"query": "q"}]', "is a JSON list"),
    ],
)
def test_a_broken_object_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_items(write(tmp_path / "q.json", text)))


def test_the_memory_of_reading_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "q.json"
    item = json.dumps({"queries": [{"query": "x" * 2000, "target_api": "a.b"}]})
    with path.open("w", encoding="utf-8") as file:
        file.write("{" + ", ".join(f'"{n}": {item}' for n in range(4_000)) + "}")
    assert path.stat().st_size > 8e6
    tracemalloc.start()
    count = sum(1 for _ in read_items(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 6e6


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("numpy.array", "numpy.array"),
        (" `numpy.array(x, axis=0)` ", "numpy.array"),
        ("from numpy import array", "numpy.array"),
        ("from numpy.linalg import norm as n", "numpy.linalg.norm"),
        ("from numpy import linalg; linalg.norm(x)", "numpy.linalg.norm"),
        ("import numpy.linalg", "numpy.linalg"),
        ("import numpy as np; np.array", "numpy.array"),
        ("import numpy as np\nnp.linalg.norm(x, ord=2)", "numpy.linalg.norm"),
        ("importlib.import_module", "importlib.import_module"),
        ("", ""),
    ],
)
def test_forms_in_which_an_api_is_written(text: str, name: str) -> None:
    assert api_name(text, "x") == name


@pytest.mark.parametrize(
    "text",
    ["from numpy import array, zeros", "from numpy import *", "import numpy, pandas", "import numpy as", "from x"],
)
def test_an_api_that_is_none_or_several_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"dotted name|ask for one in each query"):
        api_name(text, "x")


def test_repeated_ids_are_kept_and_told(tmp_path: Path) -> None:
    rows = [{**FLAT[1], "query": f"q{n}", "id": 5 if n in (1, 3, 4) else f"n{n}"} for n in range(5)]
    path = write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, rows)))
    expansion = expand_queries(path, tmp_path)
    assert (expansion.queries, expansion.repeated_ids, expansion.repeated_id) == (5, 2, "5_0")
    assert [row.query for row in expanded(path, tmp_path)] == [f"q{n}" for n in range(5)]
