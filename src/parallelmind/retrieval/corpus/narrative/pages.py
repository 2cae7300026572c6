"""Pages of documentation, in reStructuredText or Markdown, as paragraphs and blocks of code.

Only the lines are looked at: no directive is carried out, so no page can include a file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CODE_DIRECTIVES = frozenset({"code-block", "code", "sourcecode", "testcode", "doctest", "ipython", "testsetup"})
_TEXT_DIRECTIVES = frozenset(
    {"note", "tip", "hint", "important", "seealso", "admonition", "topic", "rubric", "versionadded", "versionchanged"}
)
_OBJECT_DIRECTIVE = re.compile(
    r"(?:py:)?(?:auto)?(?:function|class|method|classmethod|staticmethod|decorator|decoratormethod|attribute|property|data"
    r"|exception)"
)
_NAME = re.compile(r"(?:(?:async|abstract|class|static|final)\s+)*@?([A-Za-z_][\w.]*)")
_MODULE_DIRECTIVES = frozenset({"currentmodule", "module", "py:module", "py:currentmodule", "automodule"})
_LANGUAGES = frozenset({"", "python", "python3", "py", "pycon", "python-console", "ipython", "ipython3", "default"})
_DIRECTIVE = re.compile(r"\.\.\s+([\w:-]+?)::(?:\s+(.*))?$")
_FENCE = re.compile(r"(`{3,}|~{3,})\s*\{?\.?([\w+-]*)")
_BULLET = re.compile(r"(?:[-*+•]|\d+[.)]|#\.)\s+")
_RULE = re.compile(r"([^\w\s])\1{2,}$")
_RULE_OF_TABLE = re.compile(r"\s*(?:\+[-=+]{3,}\+|=+(?: +=+)+)\s*$")
_OPTION = re.compile(r":[\w-]+:")
_DEEPEST = 6


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph or code, or with a `module` only the module that names belong to from here on."""

    text: str
    is_code: bool = False
    module: str = ""
    described: tuple[str, ...] = ()
    """The names that it is the reference documentation of, as they are written there, below their class."""
    is_heading: bool = False


def read_page(name: str, text: str) -> list[Block]:
    """The blocks of a page, in order; `name` tells which of the two languages it is in."""
    lines = text.expandtabs(4).splitlines()
    return list(_markdown(lines) if name.lower().endswith((".md", ".markdown")) else _rest(lines, 0))


def _rest(lines: Sequence[str], depth: int, owner: str = "") -> Iterator[Block]:
    """`owner` is the class whose description the lines are."""
    place, is_code_next = 0, False
    while place < len(lines):
        line = lines[place]
        if not line.strip():
            place += 1
            continue
        if line[0] == " ":  # a quotation, the text of a list item, or after "::" a literal block
            inner, place = _indented(lines, place)
            if is_code_next:
                yield Block(_joined(inner), is_code=True)
            elif depth < _DEEPEST:
                yield from _rest(inner, depth + 1, owner)
            is_code_next = False
            continue
        is_code_next = False
        if line.startswith(".."):
            yield from _directive(lines, place, depth, owner)
            place = _indented(lines, place + 1)[1]
            continue
        end = place
        while end < len(lines) and lines[end].strip() and (end == place or not lines[end].startswith("..")):
            end += 1
        paragraph = lines[place:end]
        place = end
        if line.startswith(">>>"):
            yield Block("\n".join(paragraph), is_code=True)
        else:
            is_code_next = paragraph[-1].rstrip().endswith("::")
            yield from _paragraph(paragraph, depth)


def _paragraph(paragraph: Sequence[str], depth: int) -> Iterator[Block]:
    """Or a heading; items of a list are paragraphs of their own, and tables are none."""
    if any(_RULE.match(line.strip()) for line in paragraph[:3]) and len(paragraph) <= 3:
        yield Block(next((line.strip() for line in paragraph if not _RULE.match(line.strip())), ""), is_heading=True)
        return
    if any(map(_RULE_OF_TABLE.match, paragraph)):
        return
    item: list[str] = []
    for line in paragraph:
        bullet = _BULLET.match(line.strip())
        if bullet and item:
            yield from _said(item)
            item = []
        item.append(line.strip()[bullet.end() :] if bullet else line.strip())
    yield from _said(item)


def _said(lines: Sequence[str]) -> Iterator[Block]:
    text = " ".join(lines)
    text = text[:-1] if text.endswith("::") else text
    if text.strip(" :"):
        yield Block(text)


def _directive(lines: Sequence[str], place: int, depth: int, owner: str) -> Iterator[Block]:
    found = _DIRECTIVE.match(lines[place].strip())
    if found is None:
        return
    name, argument = found.group(1), (found.group(2) or "").strip()
    inner = _indented(lines, place + 1)[0]
    while inner and _OPTION.match(inner[0]):
        inner = inner[1:]
    if name in _MODULE_DIRECTIVES:
        yield Block("", module=argument)
    elif name in _CODE_DIRECTIVES:
        if name != "code-block" or argument.lower() in _LANGUAGES:
            yield Block(_joined(inner), is_code=True)
    elif name in _TEXT_DIRECTIVES and depth < _DEEPEST:
        yield from _rest(inner, depth + 1, owner)
    elif _OBJECT_DIRECTIVE.fullmatch(name) and depth < _DEEPEST:
        yield from _description([argument, *inner], depth, owner, is_class=name.endswith(("class", "exception")))


def _description(lines: Sequence[str], depth: int, owner: str, *, is_class: bool) -> Iterator[Block]:
    """What a directive says of an object: its signatures up to the first empty line, and after it the text."""
    end = next((place for place, line in enumerate(lines) if not line.strip() or _OPTION.match(line)), len(lines))
    heads = [found.group(1) for line in lines[:end] if (found := _NAME.match(line.strip()))]
    names = [name if not owner or "." in name else f"{owner}.{name}" for name in heads]
    body = lines[end:]
    while body and (not body[0].strip() or _OPTION.match(body[0])):
        body = body[1:]
    inner = list(_rest(body, depth + 1, names[0] if is_class and names else owner))
    own = itertools.takewhile(lambda block: not block.described, inner)
    said = " ".join(block.text for block in own if not block.is_code and not block.is_heading and block.text)
    yield Block(said, described=tuple(names))
    yield from inner


def _indented(lines: Sequence[str], place: int) -> tuple[list[str], int]:
    """The lines from a place on that are indented, without their common indentation; and the place after them."""
    end = place
    while end < len(lines) and (not lines[end].strip() or lines[end][0] == " "):
        end += 1
    block = lines[place:end]
    depth = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[depth:] for line in block], end


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _markdown(lines: Sequence[str]) -> Iterator[Block]:
    paragraph: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place].strip()
        fence = _FENCE.match(line)
        if fence is None and line and not line.startswith(("#", "<", "|", "!!!")):
            if _BULLET.match(line) and paragraph:
                yield from _said(paragraph)
                paragraph = []
            paragraph.append(_BULLET.sub("", line, count=1))
            place += 1
            continue
        if paragraph:
            yield from _said(paragraph)
            paragraph = []
        place += 1
        if line.startswith("#"):
            yield Block(line.strip("# "), is_heading=True)
        if fence is not None:
            end = place
            while end < len(lines) and not lines[end].strip().startswith(fence.group(1)):
                end += 1
            if fence.group(2).lower() in _LANGUAGES:
                yield Block(_joined(_dedented(lines[place:end])), is_code=True)
            place = end + 1
    if paragraph:
        yield from _said(paragraph)


def _dedented(lines: Sequence[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]
