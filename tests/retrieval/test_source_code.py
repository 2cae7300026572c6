"""Source code on request, from the archive that a corpus was built from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from parallelmind.retrieval.corpus.fetch import open_archive
from parallelmind.retrieval.corpus.rows import Origin, docstring_rows
from parallelmind.retrieval.corpus.static import analyse
from parallelmind.retrieval.corpus_rows import CorpusRow, corpus_file, write_corpus
from parallelmind.retrieval.queries import Query
from parallelmind.retrieval.retriever import Retriever, RetrieverSettings
from parallelmind.retrieval.source_code import read_source
from parallelmind.retrieval.store import CorpusStore
from tests.retrieval.corpus.wheels import make_sdist, make_wheel, write_package

FILES = {
    "mill/__init__.py": '''
        """Mills."""
        import functools


        @functools.cache
        def grind(grain):
            """Make flour."""
            return f"```{grain}```"


        class Stone:
            """Turns."""

            def turn(self):
                return 1
        ''',
    "mill/long.py": "def wall():\n    return [\n" + "        1,\n" * 900 + "    ]\n",
}


GRIND = '@functools.cache\ndef grind(grain):\n    """Make flour."""\n    return f"```{grain}```"'


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, CorpusRow]:
    wheel = make_wheel(tmp_path / "corpora/.wheels", FILES, name="mill")
    found = analyse(write_package(tmp_path / "package", FILES), "mill")
    origin = Origin(distribution="mill", version="1.0", wheel=wheel.name, wheel_sha256=open_archive(wheel).sha256)
    return {row.path: row for row in docstring_rows(found.objects, origin)}


def test_the_lines_of_an_object(tmp_path: Path, rows: dict[str, CorpusRow]) -> None:
    assert rows["mill.grind"].place == "mill/__init__.py:5-8"
    code = read_source(tmp_path / "corpora", rows["mill.grind"])
    assert code.text == GRIND
    assert code.place == "mill/__init__.py, lines 5-8 of mill-1.0-py3-none-any.whl"
    assert code.shown().startswith(f"Source in {code.place}:\n\n````python\n@functools")
    assert read_source(tmp_path / "corpora", rows["mill.Stone.turn"]).text == "def turn(self):\n    return 1"


def test_long_ones_end_at_a_line(tmp_path: Path, rows: dict[str, CorpusRow]) -> None:
    code = read_source(tmp_path / "corpora", rows["mill.long.wall"])
    assert code.truncated
    assert code.text.startswith("def wall():")
    assert len(code.text.splitlines()) == 150


def test_from_a_source_archive(tmp_path: Path, rows: dict[str, CorpusRow]) -> None:
    archive = make_sdist(tmp_path / "corpora/.wheels/sources", {f"src/{name}": text for name, text in FILES.items()})
    place = "shapes-1.0/src/mill/__init__.py:6-8"
    row = dataclasses.replace(rows["mill.grind"], wheel=archive.name, wheel_sha256="", place=place)
    assert read_source(tmp_path / "corpora", row).text.startswith("def grind(grain):")


def test_in_contexts(tmp_path: Path, rows: dict[str, CorpusRow], caplog: pytest.LogCaptureFixture) -> None:
    path = corpus_file(tmp_path / "corpora", "mill", "1.0")
    path.parent.mkdir()
    write_corpus(path, rows.values())
    store = CorpusStore(tmp_path / "corpora", index_path=tmp_path / "index")

    def context(api: str, **settings: bool) -> str:
        options = RetrieverSettings(max_tokens=0, **settings)  # type: ignore[arg-type]
        query = Query(original_item_id=0, query_index=0, query="?", target_api=api, dependencies={"mill": "1.0"})
        return Retriever(store, options).retrieve(query).context.text

    plain, full = context("mill.grind"), context("mill.grind", include_source=True)
    assert plain == "mill.grind(grain)\n(function of mill 1.0)\n\nMake flour."
    assert full.startswith(plain)
    assert full.endswith(f"lines 5-8 of mill-1.0-py3-none-any.whl:\n\n````python\n{GRIND}\n````")
    shutil.rmtree(tmp_path / "corpora/.wheels")
    assert [context("mill.grind", include_source=True) for _ in range(2)] == [plain, plain]
    assert [record.message for record in caplog.records if "no source code" in record.message] == [
        f"no source code: mill-1.0-py3-none-any.whl is not in {tmp_path / 'corpora/.wheels'}: build the version again, "
        "or put it there."
    ] * 2
    store.close()


def test_why_there_is_none(tmp_path: Path, rows: dict[str, CorpusRow]) -> None:
    corpora, row = tmp_path / "corpora", rows["mill.grind"]
    assert "has no source code in Python" in read_source(corpora, rows["mill"]).problem
    odd = dataclasses.replace(row, place="mill/../../secret.py:1-9")
    assert "has no mill/../../secret.py" in read_source(corpora, odd).problem
    assert "is not in" in read_source(corpora, dataclasses.replace(row, wheel="../../x.whl")).problem
    other = dataclasses.replace(row, wheel_sha256="0" * 64)
    assert "is not what the corpus was built from" in read_source(corpora, other).problem
    shutil.rmtree(corpora / ".wheels")
    gone = read_source(corpora, row)
    assert (gone.text, gone.shown()) == ("", "")
    assert "build the version again" in gone.problem
