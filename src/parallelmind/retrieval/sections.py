"""The parts of a document, by what they are worth to who asks: signature, summary, parameters, examples, notes …"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

EXAMPLE_FROM, SAID_IN, SOURCE_IN = "Example from ", "Said in ", "Source in "
"""Begin the headings of what contexts add to a docstring."""


class Worth(IntEnum):
    """What is kept first has the least number."""

    HEAD = 0
    SUMMARY = 1
    EXAMPLE = 2
    PARAMETERS = 3
    RESULTS = 4
    PROSE = 5
    SOURCE = 6
    RELATED = 7
    NOTES = 8
    REFERENCES = 9


_TITLES = {
    Worth.PARAMETERS: "parameters|params|args|arguments|other parameters|keyword args|keyword arguments|attributes",
    Worth.RESULTS: "returns?|yields?|raises|receives|warns|throws",
    Worth.EXAMPLE: "examples?|usage|example usage",
    Worth.RELATED: "see also|methods|todo|version added|versions?",
    Worth.NOTES: "notes?|details|implementation notes|warnings?",
    Worth.REFERENCES: "references?|bibliography|sources?|citations?",
}
_WORTH = [(re.compile(words, re.I), worth) for worth, words in _TITLES.items()]
_GOOGLE = re.compile(rf"(?:{'|'.join(_TITLES.values())})\s*:", re.I)
_UNDERLINE = re.compile(r"([-=~^*])\1{2,}$")
_FIELD = re.compile(r":(?:param|parameter|arg|argument|key|keyword|type|var|ivar|cvar)\b[^:]*:")
_RESULT_FIELD = re.compile(r":(?:returns?|rtype|raises?|except|yields?)\b[^:]*:")
_CODE_DIRECTIVE = re.compile(r"\.\. (?:code-block|code|sourcecode)::")
_TEXT = (Worth.HEAD, Worth.SUMMARY, Worth.PROSE)
_CITATION = re.compile(r"\.\. \[\w+\]")
_CALL = re.compile(r"[\w.]+\(.*\)(\s*->.*)?$", re.DOTALL)


@dataclass(slots=True)
class Unit:
    """A paragraph, or code that belongs together."""

    text: str
    is_code: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is there whole or not at all."""
        return self.is_code or self.text.startswith(SAID_IN)


@dataclass(slots=True)
class Section:
    """Units under one heading, which is part of the first of them."""

    worth: Worth
    units: list[Unit] = field(default_factory=list)
    is_between: bool = False
    """An example in the middle of the text, without a heading."""


def sections_of(text: str) -> list[Section]:
    """The sections of a document, in its order; joined by empty lines, their units are the document."""
    first, *rest = _paragraphs(text)
    found = [Section(Worth.HEAD, [Unit("\n".join(first))])]
    has_summary = False
    for paragraph in rest:
        worth = _worth_of(paragraph)
        last = found[-1]
        if worth is None and last.worth in _TEXT and _begins_code(paragraph, last.units[-1]):
            found.append(Section(Worth.EXAMPLE, is_between=True))
        elif worth is None and last.is_between and not paragraph[0].startswith((" ", "\t", ">>>")):
            worth = Worth.PROSE
        if worth is None and found[-1].worth in (Worth.HEAD, Worth.SUMMARY):
            is_call = _CALL.fullmatch("\n".join(paragraph).strip()) is not None
            worth = Worth.PROSE if has_summary else Worth.SUMMARY
            has_summary = has_summary or not is_call
        if worth is not None and (worth, True) != (found[-1].worth, worth in (Worth.PROSE, Worth.SUMMARY)):
            found.append(Section(worth))
        _add(found[-1], paragraph)
    return found


def _begins_code(paragraph: Sequence[str], before: Unit) -> bool:
    line = paragraph[0]
    is_literal = before.text.rstrip().endswith("::") and line.startswith((" ", "\t"))
    return is_literal or line.startswith((">>>", "```")) or _CODE_DIRECTIVE.match(line) is not None


def _worth_of(paragraph: Sequence[str]) -> Worth | None:
    """What begins with a heading, or with the fields of reStructuredText; None for what goes on, or is indented."""
    line = paragraph[0].rstrip()
    if line.startswith((" ", "\t")):
        return None
    if line.startswith(EXAMPLE_FROM):
        return Worth.EXAMPLE
    if line.startswith(SAID_IN):
        return Worth.RELATED
    if line.startswith(SOURCE_IN):
        return Worth.SOURCE
    if _CITATION.match(line):
        return Worth.REFERENCES
    if _FIELD.match(line):
        return Worth.PARAMETERS
    if _RESULT_FIELD.match(line):
        return Worth.RESULTS
    is_underlined = len(paragraph) > 1 and _UNDERLINE.match(paragraph[1].strip()) is not None
    title = line.lstrip("#").strip() if line.startswith("#") else line if is_underlined else ""
    if not title and _GOOGLE.fullmatch(line):
        title = line.rstrip(" :")
    if not title:
        return None
    return next((worth for words, worth in _WORTH if words.fullmatch(title)), Worth.PROSE)


def _add(section: Section, paragraph: Sequence[str]) -> None:
    text = "\n".join(paragraph)
    before = section.units[-1] if section.units else None
    is_indented = paragraph[0].startswith((" ", "\t"))
    is_session = paragraph[0].lstrip().startswith((">>>", "```", "In ["))
    follows = before is not None and (before.text.rstrip().endswith("::") or section.worth == Worth.EXAMPLE)
    is_block = section.worth in (Worth.EXAMPLE, Worth.SOURCE) or follows
    is_code = is_session or (is_indented and is_block) or any(">>>" in line for line in paragraph)
    if before is not None and before.is_code and is_indented and is_block and not is_session:
        before.text += f"\n\n{text}"  # the same code, after an empty line
        return
    section.units.append(Unit(text, is_code))


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Lines between empty lines; what is fenced in is one, whatever is in it. A heading begins one."""
    kept: list[str] = []
    fence = ""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        stripped = line.strip()
        if fence:
            kept.append(line)
            fence = "" if stripped.startswith(fence) else fence
            continue
        if not stripped:
            if kept:
                yield kept
                kept = []
            continue
        following = lines[place + 1].strip() if place + 1 < len(lines) else ""
        is_heading = _GOOGLE.fullmatch(stripped) or (
            _UNDERLINE.match(following) and len(stripped) <= len(following) + 3
        )
        if kept and is_heading and not line.startswith(" "):
            yield kept
            kept = []
        kept.append(line)
        fence = stripped[:3] if stripped.startswith(("```", "~~~")) else ""
    if kept or not text.strip():
        yield kept or [text]
