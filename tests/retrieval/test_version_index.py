from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from parallelmind.demos.retrieval import ASSETS
from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.corpus_rows import corpus_file, write_corpus
from parallelmind.retrieval.store import CorpusStore, default_index_path
from parallelmind.retrieval.version_index import VersionIndex, cached_folder, public_name
from tests.retrieval.small_corpus import NEW, OLD, new_rows, old_rows, row


@pytest.fixture
def open_index() -> Iterator[Callable[[Path], VersionIndex]]:
    with contextlib.ExitStack() as stack:

        def open_file(file: Path) -> VersionIndex:
            index_path = file.parent.parent / ".index"
            index = VersionIndex(file, index_path, package=file.parent.name, version=file.stem)
            return stack.enter_context(contextlib.closing(index))

        yield open_file


Open = Callable[[Path], VersionIndex]


def test_every_name_leads_to_its_row(corpus: Path, open_index: Open) -> None:
    index = open_index(corpus_file(corpus, "box", OLD))
    expected = {name: place for place, row in enumerate(old_rows()) for name in row.names}
    assert {name: index.find(name) for name in expected} == expected
    assert [index.row(place) for place in range(index.rows)] == old_rows()
    assert dict(index.all_names()) == expected
    assert index.find("box.fol") is None
    assert index.find("Box.fold") is None


def test_a_path_counts_more_than_an_alias_of_the_same_name(tmp_path: Path, open_index: Open) -> None:
    file = tmp_path / "p" / "1.jsonl"
    file.parent.mkdir()
    write_corpus(file, [row("p.impl", "alias first", "p.name"), row("p.name", "the path")])
    assert open_index(file).find("p.name") == 1


def test_an_edited_corpus_gets_a_new_index_and_the_former_one_goes(corpus: Path, open_index: Open) -> None:
    first = open_index(corpus_file(corpus, "box", OLD))
    assert first.find("box.fold") == 4
    edited = [row("box.fold", "Edited.")]
    write_corpus(corpus_file(corpus, "box", OLD), edited)
    # What is open still answers from the content it was made of.
    assert first.row(4).doc == "Fold a sheet of paper along its middle."
    second = open_index(corpus_file(corpus, "box", OLD))
    assert second.find("box.fold") == 0
    assert second.row(0).doc == "Edited."
    assert first.folder != second.folder
    assert not first.folder.exists()


def test_an_edit_in_place_while_it_is_read_is_told(corpus: Path, open_index: Open) -> None:
    index = open_index(corpus_file(corpus, "box", OLD))
    file = corpus_file(corpus, "box", OLD)
    with file.open("r+b") as opened:
        opened.write(b"x" * 50)
    with pytest.raises(DataError, match="edited in place"):
        index.row(0)


def test_blank_lines_and_a_byte_order_mark_do_not_shift_rows(tmp_path: Path, open_index: Open) -> None:
    file = tmp_path / "p" / "1.jsonl"
    file.parent.mkdir()
    lines = [json.dumps({"path": f"p.名{n}", "doc": "文"}, ensure_ascii=False) for n in range(3)]
    file.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n\n{lines[1]}\n  \n{lines[2]}".encode())
    index = open_index(file)
    assert [index.row(place).path for place in range(index.rows)] == ["p.名0", "p.名1", "p.名2"]


def test_a_wrong_row_names_file_and_line(corpus: Path, open_index: Open) -> None:
    with corpus_file(corpus, "box", OLD).open("a", encoding="utf-8") as file:
        file.write('{"path": 5, "doc": ""}\n')
    with pytest.raises(DataError, match=r"1\.2\.3\.jsonl: line 9: \"path\" is a number"):
        open_index(corpus_file(corpus, "box", OLD))
    assert not list(default_index_path(corpus).rglob("names.sqlite"))


def test_an_index_folder_that_cannot_be_written_is_told(corpus: Path) -> None:
    (corpus / "taken").write_text("a file, not a folder")
    with pytest.raises(SettingsError, match="--index_path"):
        CorpusStore(corpus, index_path=corpus / "taken").index("box", OLD)


def test_public_names_have_few_private_parts_and_are_short() -> None:
    assert public_name(row("a._impl.f", "", "a.api.f", "a.f")) == "a.f"
    assert public_name(row("a.f", "", "a.b.f")) == "a.f"


def _rows_found(corpus: str) -> list[int]:
    store = CorpusStore(Path(corpus))
    indexes = [store.index("box", version) for version in (OLD, NEW)]
    return [os.getpid(), *(index.find("box.fold") or -1 for index in indexes)]


def test_many_processes_that_open_at_once_share_one_index(corpus: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.map(_rows_found, [str(corpus)] * 8, chunksize=1)
    assert {tuple(rows[1:]) for rows in found} == {(4, 3)}
    assert len(list(default_index_path(corpus).rglob("names.sqlite"))) == 2
    assert not list(default_index_path(corpus).rglob("*.tmp"))


def test_the_store_keeps_the_last_used_versions_open(corpus: Path) -> None:
    store = CorpusStore(corpus, max_open=2)
    old = store.index("box", OLD)
    store.index("box", NEW)
    assert store.index("box", OLD) is old
    new = store.index("box", NEW)
    assert store.index("box", OLD) is old
    store.index("lid", "0.1")  # lets box 2.0.0 go, which was not used for longest
    assert new.find("box.fold") == 3  # who still has it can go on
    assert store.index("box", NEW) is not new
    assert [row.path for row in store.index("box", NEW).all_rows()] == [row.path for row in new_rows()]
    store.close()


def test_a_folder_without_corpora_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parallelmind corpus build"):
        CorpusStore(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        CorpusStore(tmp_path / "no")


def test_nothing_is_written_into_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundled = ASSETS / "corpus"
    before = sorted(bundled.rglob("*"))
    with contextlib.closing(CorpusStore(bundled)) as store:
        store.index("numpy", store.versions("numpy")[0])
    assert sorted(bundled.rglob("*")) == before
    assert list((tmp_path / "cache/parallelmind/index").rglob("names.sqlite"))
    # One corpus has one folder, and two have two.
    assert default_index_path(corpus) == default_index_path(corpus / "." / "x" / "..") != default_index_path(bundled)


def test_a_process_that_stands_still_while_it_builds_costs_a_while_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def build(place: Path) -> None:
        (place / "it").write_text("built")

    with FileLock(tmp_path / "made.lock"):
        made = cached_folder(folder, build, patience=0.1)
    assert (made / "it").read_text() == "built"
    assert cached_folder(folder, build, patience=0.0) == folder
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp") == []


def test_whoever_is_faster_has_made_it(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def build(place: Path) -> None:
        (place / "it").write_text("slow")
        folder.mkdir()
        (folder / "it").write_text("fast")

    assert (cached_folder(folder, build) / "it").read_text() == "fast"
    assert not list(tmp_path.glob("*.tmp"))
