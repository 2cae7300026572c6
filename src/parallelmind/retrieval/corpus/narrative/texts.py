"""Which files of an archive show how its package is used: pages of documentation, examples and tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from pathlib import Path

from parallelmind.retrieval.corpus.fetch import Archive
from parallelmind.retrieval.corpus.narrative.examples import SourceText, is_test_name
from parallelmind.retrieval.corpus.source_archive import source_texts

_PAGES = (".rst", ".md", ".markdown", ".txt")
_FOLDERS = re.compile(r"(?:^|/)(?:docs?|documentation|guide|tutorials?|user_guide)/", re.I)
_EXAMPLES = re.compile(r"(?:^|/)(?:examples?|gallery|galleries|tutorials?|snippets|docs_src)/", re.I)
_READ_ME = re.compile(r"readme(?:\.rst|\.md|\.txt)?", re.I)
_OTHER = re.compile(
    r"(?:^|/)(?:chang|history|news|release|versions\.|upgrad|migrat|porting|whats.?new|licen|copying|authors|contribut|credits|code.of.conduct|security"
    r"|maintain|governance|roadmap|_templates|_themes|node_modules|_?vendor)",
    re.I,
)
"""What tells of other versions, or of people."""
_LONGEST = 400_000
_MOST_OF_TESTS, _MOST_OF_PAGES = 3_000_000, 8_000_000


def is_wanted(name: str) -> bool:
    """Whether a file may show how a package is used."""
    if _OTHER.search(name):
        return False
    if name.endswith(".py"):
        return is_test_name(name) or _EXAMPLES.search(name) is not None
    is_page = name.lower().endswith(_PAGES) and _FOLDERS.search(name) is not None
    return is_page or _READ_ME.fullmatch(name) is not None


def texts_of_source(source: Archive) -> list[SourceText]:
    """Those of a source archive.

    Raises:
        DataError: the archive is damaged, or refused.
    """
    return _bounded(SourceText(name, text) for name, text in source_texts(source, is_wanted))


def texts_of_wheel(folder: Path) -> list[SourceText]:
    """Those of an unpacked wheel: its description, and tests that it installs."""
    return _bounded(_installed(folder))


def _installed(folder: Path) -> Iterator[SourceText]:
    for path in folder.glob("*.dist-info/METADATA"):
        found = HeaderParser().parsestr(path.read_text("utf-8", "replace"))
        suffix = ".md" if "markdown" in str(found.get("Description-Content-Type", "")) else ".rst"
        yield SourceText(f"README{suffix}", str(found.get_payload()))
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if is_wanted(name):
            yield SourceText(name, path.read_text("utf-8", "replace"))


def _bounded(texts: Iterable[SourceText]) -> list[SourceText]:
    """In the order of names; of too many, the largest are left out."""
    kept = []
    left = {True: _MOST_OF_TESTS, False: _MOST_OF_PAGES}
    for one in sorted(texts, key=lambda one: (len(one.text), one.name)):
        size = len(one.text)
        if size <= min(_LONGEST, left[one.is_test]):
            left[one.is_test] -= size
            kept.append(one)
    return sorted(kept, key=lambda one: one.name)
