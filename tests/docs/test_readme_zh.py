"""README.zh.md says what README.md says: same sections, code, figures and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    """Fenced blocks without their comments, which are translated."""
    blocks = re.findall(r"^```\w+\n.*?^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"(?m) +# .*$", "", block) for block in blocks]


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+) .*$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text)


def figures(text: str) -> set[str]:
    """Numbers with their decimals; as words they may be written otherwise in another language."""
    return set(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))


def test_same_sections() -> None:
    assert headings(CHINESE) == headings(ENGLISH)


def test_same_code() -> None:
    assert code_blocks(CHINESE) == code_blocks(ENGLISH)


def test_same_tables() -> None:
    """Row by row as many cells, and the figures of the benchmarks to the letter."""

    def rows(text: str) -> list[list[str]]:
        lines = [line for line in prose(text).splitlines() if line.startswith("|")]
        return [line.strip("|").split("|") for line in lines]

    english, chinese = rows(ENGLISH), rows(CHINESE)
    assert [len(row) for row in chinese] == [len(row) for row in english]
    for ours, theirs in zip(chinese, english, strict=True):
        if any(cell.strip()[:1].isdigit() for cell in theirs):
            assert ours == theirs


def test_same_inline_code() -> None:
    """Flags, commands and names are not translated, nor left out."""
    for code in set(re.findall(r"`([^`\n]+)`", prose(ENGLISH))):
        assert f"`{code}`" in CHINESE, code


def test_same_figures() -> None:
    """Each number of the English text stands in the Chinese one, or is written in units of ten thousand there."""
    written_otherwise = {"25": "2,500 万"}
    for number in figures(ENGLISH) - figures(CHINESE):
        assert written_otherwise.get(number, number) in CHINESE, number


def test_links_exist_and_are_those_of_the_original() -> None:
    def links(text: str) -> set[str]:
        return set(re.findall(r"\]\(([^)#]+)\)", text))

    for link in links(CHINESE):
        assert link.startswith("http") or (ROOT / link).exists(), link
    assert links(ENGLISH) - {"README.zh.md"} <= links(CHINESE)


def test_it_is_chinese() -> None:
    """No paragraph was left in English: text outside of code, links and names is Chinese for the most part."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose(CHINESE))
    for paragraph in text.split("\n\n"):
        letters = len(re.findall(r"[A-Za-z]", paragraph))
        characters = len(re.findall(r"[\u4e00-\u9fff]", paragraph))
        if letters > 80 and "qwen2" not in paragraph:
            assert characters > letters / 2, paragraph
