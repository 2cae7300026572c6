"""What release notes say of names, as contexts and comparisons cite it."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallelmind.errors import DataError
from parallelmind.retrieval.changes import compare
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from parallelmind.retrieval.namespaces import names_file, write_namespaces
from parallelmind.retrieval.noted import end_noted
from parallelmind.retrieval.notes import Note, notes_file, read_notes, write_notes
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.renames import RenameTable
from parallelmind.retrieval.replacement import find_replacement
from parallelmind.retrieval.retriever import Retrieval, Retriever, RetrieverSettings
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.small_corpus import namespaces_of, row, write_version

TABLE = RenameTable({}, {}, {})
OLD = [
    row("box", "Boxes.", kind="module"),
    row("box.Crate", "A crate.", kind="class"),
    row("box.Crate.shut", "Shut it.", kind="method"),
    row("box.nail_up", "Nail it."),
    row("box.find_by_size", "Find it by its size, in metres.", calls="find"),
    row("box.find", "Find it."),
]
NEW = [
    row("box", "Boxes.", kind="module"),
    row("box.Crate", "A crate.", kind="class"),
    row("box.Crate.close_lid", "Close the lid of it.", kind="method"),
    row("box.Lid", "A lid.", kind="class"),
    row("box.Lid.lift", "Lift it.", kind="method"),
    row("box.find", "Find it."),
]
NOTES = [
    Note(text="`Crate.shut` is renamed to `close_lid`.", version="2.0", source="CHANGES.rst"),
    Note(text="Remove `box.nail_up`.", version="2.0", source="CHANGES.rst"),
    Note(text="The `size` argument of `box.Lid` is deprecated.", version="2.0", source="CHANGES.rst"),
    Note(text="`box.Cover` is deprecated in favor of `box.Lid`.", version="1.5", source="CHANGES.rst"),
    Note(text="Drop `box.scales`, use `shutil.disk_usage` instead.", version="", source="CHANGES.rst"),
    Note(text="`box.ribbon` is removed; use `box.bow` instead.", version="1.6", source="CHANGES.rst"),
    Note(text="`Lid.shut` is deprecated; use `Lid.lift`.", version="1.7", source="CHANGES.rst"),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CorpusStore]:
    for version, rows in (("1", OLD), ("2", NEW)):
        file = write_version(tmp_path / "corpora", "box", version, rows)
    write_notes(notes_file(file), NOTES)
    with contextlib.closing(CorpusStore(tmp_path / "corpora", index_path=tmp_path / "index")) as store:
        yield store


def ask(store: CorpusStore, name: str) -> Retrieval:
    query = Query(original_item_id="", query_index=0, query="", target_api=name, dependencies={"box": "2"})
    return Retriever(store, RetrieverSettings(max_tokens=0), renames=TABLE).retrieve(query)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("box.Crate.shut", "box.Crate.close_lid"),
        ("box.Cover", "box.Lid"),
        ("box.scales", "shutil.disk_usage"),
        ("box.Lid.shut", "box.Lid.lift"),
        ("box.ribbon", None),  # what it should be is not there
        ("box.nail_up", None),
    ],
)
def test_what_they_tell_to_use(store: CorpusStore, name: str, instead: str | None) -> None:
    found = find_replacement(store.index("box", "2"), name, TABLE)
    assert (found and found.name) == instead
    assert found is None or (found.is_noted and found.evidence.startswith("The release notes of box-dist"))


def test_a_context_cites_them(store: CorpusStore) -> None:
    assert ask(store, "box.Cover").context.text.startswith(
        "box.Cover does not exist in box 2. box, as imported with Python 3.11.7, has no Cover. In box 2, use box.Lid"
        " instead. The release notes of box-dist 1.5 say: `box.Cover` is deprecated in favor of `box.Lid`."
    )
    found = ask(store, "box.nail_up")
    assert "box 1 had it. The release notes of box-dist 2.0 say: Remove `box.nail_up`." in found.context.text
    assert found.absence is not None
    assert found.absence.fields()["noted"] == "The release notes of box-dist 2.0 say: Remove `box.nail_up`."
    assert found.instead is None


def test_an_end_is_that_of_the_name_itself(store: CorpusStore) -> None:
    index = store.index("box", "2")
    assert end_noted(index, "box.nail_up")
    assert not end_noted(index, "box.Lid")  # of a parameter, and as what is to be used
    assert not end_noted(index, "box.Crate.close_lid")
    assert not end_noted(index, "box.Box.nail_up.size")


def test_a_comparison_cites_them(store: CorpusStore) -> None:
    found = {change.name: change for change in compare(store.index("box", "1"), store.index("box", "2"), TABLE)}
    assert (found["box.Crate.shut"].kind, found["box.Crate.shut"].new_name) == ("renamed", "box.Crate.close_lid")
    assert found["box.Crate.shut"].evidence.startswith("The release notes of box-dist 2.0 say: ")
    assert (found["box.nail_up"].kind, found["box.nail_up"].evidence) == (
        "removed",
        "The release notes of box-dist 2.0 say: Remove `box.nail_up`.",
    )


def test_what_it_was_before(store: CorpusStore) -> None:
    """A name that the version does not have yet, by the notes of a later one."""
    found = find_replacement(store.index("box", "1"), "box.Crate.close_lid", TABLE, store.index("box", "2"))
    assert found is not None
    assert found.name == "box.Crate.shut"
    assert found.evidence == "The release notes of box-dist 2.0 say: `Crate.shut` is renamed to `close_lid`."


def test_notes_of_an_older_version_where_the_archive_has_none(store: CorpusStore, tmp_path: Path) -> None:
    file = corpus_file(tmp_path / "corpora", "box", "3")
    write_corpus(file, NEW)
    write_namespaces(names_file(file), *namespaces_of(NEW))
    with contextlib.closing(CorpusStore(tmp_path / "corpora", index_path=tmp_path / "index")) as store:
        query = Query(original_item_id="", query_index=0, query="", target_api="box.Cover", dependencies={"box": "3"})
        found = Retriever(store, RetrieverSettings(max_tokens=0), renames=TABLE).retrieve(query)
        assert found.instead is not None
        assert found.instead.name == "box.Lid"


def test_what_does_nothing_but_call_another(store: CorpusStore) -> None:
    found = find_replacement(store.index("box", "2"), "box.find_by_size", TABLE, store.index("box", "1"))
    assert found is not None
    assert (found.name, found.evidence) == ("box.find", "In box 1 box.find_by_size does nothing but call find.")


def test_other_notes_give_another_index(store: CorpusStore, tmp_path: Path) -> None:
    assert store.index("box", "2").notes_on("Cover")
    write_notes(notes_file(corpus_file(tmp_path / "corpora", "box", "2")), NOTES[:1])
    with contextlib.closing(CorpusStore(tmp_path / "corpora", index_path=tmp_path / "index")) as again:
        assert not again.index("box", "2").notes_on("Cover")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "1.notes.jsonl.gz"
    write_notes(path, NOTES)
    assert list(read_notes(path)) == NOTES
    path.write_bytes(gzip.compress(b'{"text": 1}\n'))
    with pytest.raises(DataError, match=r"1\.notes\.jsonl\.gz cannot be read .* build the corpus again"):
        list(read_notes(path))
    path.write_bytes(b"not compressed")
    with pytest.raises(DataError, match=r"1\.notes\.jsonl\.gz cannot be read"):
        list(read_notes(path))
