from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.budget import TokenBudget, load_tokenizer
from parallelmind.retrieval.context_text import SEPARATOR
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.renames import RenameTable, _Removal
from parallelmind.retrieval.retriever import ABSENT, EXACT, FALLBACK, STRING, Retrieval, Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import NEW, OLD, row

TABLE = RenameTable(
    {"bx": "box"},
    {"box.sheets": ["box.paper"]},
    {"box.tape": _Removal("2.0", "box.glue"), "box.staple": _Removal("1.1", "")},
)


def ask(store: CorpusStore, api: str, version: str = NEW, query: str = "?", **settings: Any) -> Retrieval:
    options = RetrieverSettings(**{"max_tokens": 0} | settings)
    retriever = Retriever(store, options, renames=TABLE, budget=TokenBudget(load_tokenizer("tiny")))
    return retriever.retrieve(
        Query(original_item_id=0, query_index=0, query=query, target_api=api, dependencies={"box": version})
    )


def names(retrieval: Retrieval) -> list[str]:
    return [document.name for document in retrieval.context.documents]


def test_an_exact_match_is_of_the_very_version(store: CorpusStore) -> None:
    old, new = ask(store, "box.fold", OLD), ask(store, "box.fold", NEW)
    assert (old.method, new.method) == (EXACT, EXACT)
    assert old.context.text == (
        "box.fold(sheet, *, times=1)\n(function of box 1.2.3, defined as box.paper.fold)\n\n"
        "Fold a sheet of paper along its middle."
    )
    assert new.context.text.endswith("Fold a sheet of paper twice.")


def test_import_conventions_are_spelled_out(store: CorpusStore) -> None:
    assert (ask(store, "bx.fold").method, names(ask(store, "bx.fold"))) == (EXACT, ["box.fold"])


def test_a_removed_api_is_absent_and_not_its_neighbour(store: CorpusStore) -> None:
    found = ask(store, "box.weigh", query="Weigh a parcel")
    assert found.method == ABSENT
    assert found.absence is not None
    # Found by its documentation: box.weigh_ is a neighbour by name only.
    assert found.absence.fields() == {
        "evidence": "box, as imported with Python 3.11.7, has no weigh.",
        "last_version": OLD,
        "next_version": None,
        "moved_to": "box.scales.weigh",
        "moved_because": "Its documentation begins as that of box.weigh does in box 1.2.3.",
        "parent": "box",
    }
    assert found.context.text == (
        "box.weigh does not exist in box 2.0.0. box, as imported with Python 3.11.7, has no weigh. box 1.2.3 had it. "
        "In box 2.0.0, use box.scales.weigh instead. "
        "Its documentation begins as that of box.weigh does in box 1.2.3."
        "\n\n---\n\nWhat takes its place:\n\nbox.scales.weigh\n(function of box 2.0.0)\n\nWeigh a parcel in grams."
    )


@pytest.mark.parametrize("enable_str_match", [False, True])
def test_the_table_of_removals_comes_before_likeness(store: CorpusStore, enable_str_match: bool) -> None:
    found = ask(store, "box.tape", enable_str_match=enable_str_match)
    assert found.method == ABSENT
    assert names(found) == ["box.glue"]
    assert "It was removed in box 2.0." in found.context.text
    assert "box says: Deprecated since 1.2: use glue instead." in found.context.text


def test_an_api_that_no_corpus_version_has_but_the_table_knows(store: CorpusStore) -> None:
    found = ask(store, "box.staple", OLD)
    assert found.method == ABSENT
    assert found.absence is not None
    assert found.absence.removed_in == "1.1"
    assert names(found) == []


def test_a_later_api_is_absent_in_the_older_version(store: CorpusStore) -> None:
    found = ask(store, "box.glue", OLD)
    assert found.absence is not None
    assert (found.method, found.absence.last_version, found.absence.next_version) == (ABSENT, None, NEW)
    # The table says what it was called before.
    assert found.absence.moved_to == "box.tape"


def test_an_unknown_member_of_an_inspected_parent_is_absent(store: CorpusStore) -> None:
    found = ask(store, "box.scale")
    assert found.absence is not None
    assert (found.method, found.absence.parent) == (ABSENT, "box")
    assert found.existence is not None
    assert (found.existence.verdict, found.existence.verified) == ("absent", True)
    assert "Similar names there: box.scales." in found.context.text
    assert ask(store, "box._scale").method == ABSENT
    assert ask(store, "box.scale", enable_str_match=True).method == STRING


def test_a_version_that_was_not_run_has_names_without_proof_and_lacks_none(tmp_path: Path) -> None:
    for version, more in (("1.0", []), ("2.0", [row("box.add", "Adds.", source="static")])):
        file = corpus_file(tmp_path, "box", version)
        file.parent.mkdir(exist_ok=True)
        crate = row("box.Crate", "A crate.", kind="class", source="static")
        write_corpus(file, [row("box", "Boxes of all kinds.", kind="module", source="static"), crate, *more])
    store = CorpusStore(tmp_path)
    found = ask(store, "box.Crate", "1.0")
    assert (found.method, found.existence and found.existence.verified) == (EXACT, False)
    for name in ("box.add", "box.Crate.turn", "box.unknown"):
        found = ask(store, name, "1.0", query="box")
        assert (found.method, found.absence) == (FALLBACK, None)
        assert found.existence is not None
        assert found.existence.verdict == "unknown"
        assert f"which were read and not run, do not show {name}." in found.context.text
        assert "does not exist" not in found.context.text
    assert "box 2.0 has it." in ask(store, "box.add", "1.0", query="box").context.text
    store.close()


def test_string_match_says_what_it_did(store: CorpusStore) -> None:
    assert ask(store, "box.sheets.fold").method == ABSENT
    found = ask(store, "box.sheets.fold", enable_str_match=True)
    assert (found.method, names(found)) == (STRING, ["box.fold"])
    assert found.context.text.startswith("box 2.0.0 documents box.fold; it has no box.sheets.fold.\n\n")
    assert names(ask(store, "Crate.open", enable_str_match=True)) == ["box.Crate.open"]


def test_string_match_of_the_very_name_says_nothing(store: CorpusStore) -> None:
    found = ask(store, "box.paper.fold", jump_exact_match=True, enable_str_match=True)
    assert (found.method, names(found)) == (STRING, ["box.fold"])
    assert found.context.text.startswith("box.fold(sheet)")


def test_fallback_ranks_within_the_version_asked_for(store: CorpusStore) -> None:
    found = ask(store, "", OLD, "How do I get the top off?")
    assert (found.method, names(found)) == (FALLBACK, ["box.Crate.open"])
    several = ask(store, "", OLD, "How do I get the top off?", fixed_docs_per_query=5)
    assert names(several)[0] == "box.Crate.open"
    assert len(names(several)) > 1
    found = ask(store, "", NEW, "grams of a parcel", fixed_docs_per_query=3)
    assert names(found)[:1] == ["box.scales.weigh"]
    assert {document.version for document in found.context.documents} == {NEW}


def test_a_parameter_brings_what_it_belongs_to(store: CorpusStore) -> None:
    found = ask(store, "box.fold.times", OLD, "What is times?", fixed_docs_per_query=2)
    assert found.method == FALLBACK
    assert names(found)[0] == "box.fold"


def test_jump_exact_match_leaves_the_exact_stage_out(store: CorpusStore) -> None:
    found = ask(store, "box.fold", jump_exact_match=True, query="Fold a sheet")
    assert (found.method, names(found)) == (FALLBACK, ["box.fold"])


def test_queries_without_a_package_look_in_all_dependencies(store: CorpusStore) -> None:
    retriever = Retriever(store, RetrieverSettings(max_tokens=0), renames=TABLE)
    asked = Query(
        original_item_id=0,
        query_index=0,
        query="press until it clicks",
        dependencies={"box": NEW, "lid": "0.1", "x": "1"},
    )
    found = retriever.retrieve(asked)
    assert names(found) == ["lid.press"]
    assert list(found.unserved) == ["x"]


@pytest.mark.parametrize(
    ("api", "dependencies", "words"),
    [
        ("torch.add", {"torch": "2.0"}, "parallelmind corpus build torch==2.0"),
        ("box.fold", {"box": "3"}, "the corpus has no box 3 (it has 1.2.3, 2.0.0)"),
        ("box.fold", {"lid": "0.1"}, '"dependencies" has no version of box'),
        ("box.fold", {"box": "soon"}, "'soon' is not a version"),
        ("", {"lid": "0.1"}, "no document of lid 0.1 shares a word"),
    ],
)
def test_what_cannot_be_served_is_told(store: CorpusStore, api: str, dependencies: dict[str, str], words: str) -> None:
    retriever = Retriever(store, RetrieverSettings(max_tokens=0), renames=TABLE)
    query = Query(original_item_id=0, query_index=0, query="zzz", target_api=api, dependencies=dependencies)
    with pytest.raises(DataError) as error:
        retriever.retrieve(query)
    assert words in str(error.value)


def test_a_name_without_its_package_is_found_where_it_is(store: CorpusStore) -> None:
    retriever = Retriever(store, RetrieverSettings(max_tokens=0), renames=TABLE)

    def asked(api: str) -> Retrieval:
        dependencies = {"box": NEW, "lid": "0.1"}
        query = Query(
            original_item_id=0, query_index=0, query="fold a sheet", target_api=api, dependencies=dependencies
        )
        return retriever.retrieve(query)

    assert (asked("fold").method, names(asked("fold"))) == (EXACT, ["box.fold"])
    assert names(asked("Crate.open")) == ["box.Crate.open"]
    assert names(asked("press")) == ["lid.press"]
    assert asked("nowhere").method == FALLBACK


def test_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="--max_documents is 0"):
        RetrieverSettings(max_documents=0)
    with pytest.raises(SettingsError, match="above --max_documents 2"):
        RetrieverSettings(max_documents=2, fixed_docs_per_query=3)


def test_a_context_within_its_tokens(store: CorpusStore) -> None:
    found = ask(store, "", query="crate, parcel, sheet, edges", max_tokens=40, fixed_docs_per_query=5)
    assert found.context.truncated
    assert found.context.tokens is not None
    assert found.context.tokens <= 40
    several = ask(store, "", query="crate, parcel, sheet, edges", max_tokens=260, fixed_docs_per_query=0)
    assert several.context.truncated
    assert len(several.context.documents) > 1
    assert several.context.text.count(SEPARATOR) == len(several.context.documents) - 1
