"""Which files of a source archive are release notes, and what is kept of them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from parallelmind.retrieval.corpus import release_notes
from parallelmind.retrieval.corpus.fetch import open_archive
from parallelmind.retrieval.corpus.release_notes import (
    collect_notes,
    is_release_note,
    notes_of_part,
    read_release_notes,
)
from tests.retrieval.corpus.wheels import SHAPES, make_sdist, make_wheel


def entries(text: str, path: str = "CHANGES.rst") -> list[tuple[str, str]]:
    return [(note.version, note.text) for note in collect_notes([(path, textwrap.dedent(text))])]


@pytest.mark.parametrize(
    "path",
    [
        *("CHANGES", "CHANGES.rst", "CHANGELOG.md", "HISTORY.md", "NEWS.txt", "docs/changes.rst", "docs/whatsnew.rst"),
        *("docs/releases/4.0.txt", "doc/api/prev_api_changes/api_changes_3.9.0/removals.rst", "docs/v2-migration.md"),
        *("doc/source/release/2.0.0-notes.rst", "docs/deprecations.rst", "docs/en/docs/release-notes.md"),
    ],
)
def test_files_that_are(path: str) -> None:
    assert is_release_note(path)


@pytest.mark.parametrize(
    "path",
    [
        "README.rst",
        "docs/index.rst",
        "changes.py",
        "tests/changes.rst",
        "docs/fr/changes.md",
        "doc/developer/release.rst",
    ],
)
def test_files_that_are_not(path: str) -> None:
    assert not is_release_note(path)


def test_restructured_text() -> None:
    text = """\
        Changes
        =======

        Version 2.1.0
        -------------

        Released 2024-01-01

        -   Remove what was deprecated. :pr:`12`

            -   :func:`~box.seal` is
                renamed to ``close``. :issue:`3`
            -   ``box.faster`` is faster.

        Drop ``box.tape``::

            box.tape = removed_in_code()

        Version 2.0
        -----------

        .. versionchanged:: 2.0

        The following are gone:

        * ``box.glue``
        * ``box.nail``

        Support for Python 3.7
        ~~~~~~~~~~~~~~~~~~~~~~

        ``box.staple`` is removed.
        """
    assert entries(text) == [
        ("2.1.0", "`box.seal` is renamed to `close`."),
        ("2.1.0", "Drop `box.tape`::"),
        ("2.0", "The following are gone: `box.glue`"),
        ("2.0", "The following are gone: `box.nail`"),
        ("2.0", "`box.staple` is removed."),
    ]


def test_markdown() -> None:
    text = """\
        ## [1.2.0] - 2023-05-01

        * Deprecate [`Box.ok`](https://example.com) in favour of `Box.is_success`. (#7)

        ```python
        Box.removed_in_code
        ```

        ## 1.1

        * Nothing of note.
        """
    assert entries(text) == [("1.2.0", "Deprecate `Box.ok` in favour of `Box.is_success`. (#7)")]


def test_tables() -> None:
    text = """\
        ==================  ====================
        Removed             Use instead
        ==================  ====================
        ``box.blur`` and    ``filters.Blur``
        ``box.gblur``
        ``box.sharpen``     ``filters.Sharpen``
        ==================  ====================

        | Deprecated | New |
        |------------|-----|
        | `Box.ok`   | `Box.is_good` |
        """
    assert entries(text, "docs/releases/2.7.rst") == [
        ("2.7", "Removed: `box.blur` and. Use instead: `filters.Blur`."),
        ("2.7", "Removed: `box.gblur`."),
        ("2.7", "Removed: `box.sharpen`. Use instead: `filters.Sharpen`."),
        ("2.7", "Deprecated: `Box.ok`. New: `Box.is_good`."),
    ]


def test_the_version_of_a_file_holds_for_its_headings() -> None:
    text = """\
        Oracle 12.2 and up
        ------------------
        ``box.glue`` is removed.

        4.0.1
        -----
        ``box.nail`` is removed.
        """
    assert entries(text, "docs/releases/4.0.txt") == [
        ("4.0.1", "`box.nail` is removed."),
        ("4.0", "`box.glue` is removed."),
    ]


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"## {version}.0\n\n* `box.part{version}` is removed.\n\n" for version in range(1, 20))
    monkeypatch.setattr(release_notes, "MOST_BYTES", 100)
    assert [version for version, _ in entries(text)] == ["19.0", "18.0", "17.0", "16.0"]


def test_what_concerns_a_lesser_package() -> None:
    text = "* `seal` of `lids` is removed\n* `box.glue` is removed\n* `press` is renamed to `push`\n"
    notes = collect_notes([("CHANGES.rst", text)])
    assert [note.text for note in notes_of_part(notes, "box.lids", {"push"})] == [
        "`seal` of `lids` is removed",
        "`press` is renamed to `push`",
    ]


def test_terminal_controls_are_taken_off() -> None:
    ((_, text),) = entries("* `box.glue` is removed\x1b[2J.\n")
    assert "\x1b" not in text


def test_of_an_archive(tmp_path: Path) -> None:
    notes = {"CHANGES.md": "## 1.0\n\n* `shapes.square` is removed; use `shapes.area`.\n"}
    make_sdist(tmp_path, SHAPES | notes)
    source = tmp_path / "shapes-1.0.tar.gz"
    found = read_release_notes(open_archive(source), 60)
    assert [(note.version, note.source) for note in found.notes] == [("1.0", "CHANGES.md")]
    assert (found.archive, found.failure) == ("shapes-1.0.tar.gz", "")
    source.write_bytes(b"no archive")
    found = read_release_notes(open_archive(source), 60)
    assert (found.notes, found.archive) == ((), "")
    assert "shapes-1.0.tar.gz is damaged" in found.failure
    found = read_release_notes(open_archive(make_wheel(tmp_path, SHAPES)), 60)
    assert (list(found.notes), found.archive, found.failure) == ([], "", "")
