"""A translation says what its original says: same sections, code, tables, figures and links."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.docs.blocks import ROOT
from tests.docs.rules import TRANSLATIONS

FENCE = re.compile(r"^```[^\n]*\n.*?^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?m)(?:^|(?<= ))# (?![\w./-]+\.\w+$).*$")
"""In code; but not the name of a file that a block is."""
OTHERWISE = {"387": "3.87 亿", "25": "2,500 万", "20": "2,000 万", "4.4": "440 万", "64": "6,400 万"}
"""Numbers that are written in units of ten thousand or of a hundred million in Chinese."""

pytestmark = pytest.mark.parametrize("translation", TRANSLATIONS)


@cache
def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def pair(translation: str) -> tuple[str, str]:
    return read(translation), read(TRANSLATIONS[translation])


def prose(text: str) -> str:
    return FENCE.sub("", text)


def code_blocks(text: str) -> list[str]:
    """Without their comments, which are translated."""
    return [re.sub(r" +$", "", COMMENT.sub("", block), flags=re.MULTILINE) for block in FENCE.findall(text)]


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+) .*$", prose(text), re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in prose(text).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def figures(text: str) -> set[str]:
    """Numbers with their decimals; as words they may be written otherwise in another language."""
    return set(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))


def links(document: str) -> set[str]:
    """From the root. A link to a translation stands for one to its original; sections have other names."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(read(document)))
    paths = {link if link.startswith("http") else _from_root(document, link) for link in found}
    return {TRANSLATIONS.get(path, path) for path in paths}


def _from_root(document: str, link: str) -> str:
    return str(((ROOT / document).parent / link).resolve().relative_to(ROOT))


def test_same_sections(translation: str) -> None:
    ours, theirs = pair(translation)
    assert headings(ours) == headings(theirs)


def test_same_code(translation: str) -> None:
    ours, theirs = pair(translation)
    assert code_blocks(ours) == code_blocks(theirs)


def test_same_tables(translation: str) -> None:
    """Row by row as many cells, and what is a number or code to the letter."""
    ours, theirs = map(rows, pair(translation))
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for row, original in zip(ours, theirs, strict=True):
        for cell, meant in zip(row, original, strict=True):
            if re.fullmatch(r"[\d.,% ]+[×s]?|`[^`]+`", meant):
                assert cell == meant, original


def test_same_inline_code(translation: str) -> None:
    """Flags, commands and names are not translated, nor left out."""
    ours, theirs = pair(translation)
    for code in set(re.findall(r"`([^`\n]+)`", prose(theirs))):
        assert f"`{code}`" in ours, code


def test_same_figures(translation: str) -> None:
    ours, theirs = pair(translation)
    for number in figures(theirs) - figures(ours):
        assert OTHERWISE.get(number, number) in ours, number


def test_same_links(translation: str) -> None:
    original = TRANSLATIONS[translation]
    assert links(original) - {original} <= links(translation)


def test_each_links_to_the_other(translation: str) -> None:
    for document, other in ((translation, TRANSLATIONS[translation]), (TRANSLATIONS[translation], translation)):
        first = read(document).split("\n\n")[1]
        targets = {_from_root(document, link) for link in re.findall(r"\]\(([^)#]+)\)", first)}
        assert other in targets, f"the first lines of {document} do not link to {other}"
