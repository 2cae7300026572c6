"""What a package's release notes and migration guides say of its names: entries that speak of a change.

Read from the texts of a source archive. An entry is a list item, a paragraph or a row of a table; markup is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from parallelmind.errors import DataError
from parallelmind.retrieval.advice import names_in
from parallelmind.retrieval.corpus.fetch import Archive
from parallelmind.retrieval.corpus.sandbox.running import printable
from parallelmind.retrieval.corpus.source_archive import source_texts
from parallelmind.retrieval.corpus.time_limit import time_limit
from parallelmind.retrieval.notes import Note

MOST_BYTES = 2**20
"""Of all entries of a version together."""
_LONGEST = 600
_FILE = re.compile(
    r"(?:^|[/_-])(?:change|history|news|release|versions\b|whats_?new|migrat|upgrad|deprecat|api_changes|behaviou?r_changes)"
    r"[^/]*(?:\.(?:rst|md|txt))?\Z",
    re.I,
)
_FOLDER = re.compile(
    r"(?:^|/)(?:releases?|release_?notes|changelog|whats_?new|prev_api_changes|api_changes\w*)/.*[^/]*\.(?:rst|md|txt)\Z",
    re.I,
)
_ELSEWHERE = re.compile(
    r"(?:^|/)(?:tests?|testing|src|lib|third_?party|vendor(?:ed)?|_vendor|developers?|development|contributing|announce"
    r"|scripts|requirements|licenses|\..*|docs/(?!en/)\w\w(?:-\w+)?)/",
    re.I,
)
_TEXT = re.compile(r"(?:\.(?:rst|md|txt)|(?:^|/)[A-Z]+)\Z")
_OF_CHANGE = re.compile(
    r"deprecat|remov|renam|replac|\bmov(?:ed?|ing)\b|instead|favou?r|supersed|no longer|\bdrop|alias|obsolete|->|→"
    r"|\bgone\b|formerly|previously|migrat|equivalent",
    re.I,
)
_HEADING = re.compile(
    r"(?!.*\b(?:support|dropp?|minimum|python|oracle|mysql|mariadb|sqlite|postgresql)\b)"
    r"\W*(?:[A-Za-z][\w.'-]*\s+){0,5}\[?v?(\d+(?:\.\d+){1,3}(?:\.?(?:a|b|rc|post)\d+)?)(?![\w.]*\d)",
    re.I,
)
_IN_FILE_NAME = re.compile(r"(?<!\d)v?(\d+(?:[._]\d+)+)")
_RULE = re.compile(r"([=\-~^\"'#*+`.:_])\1{2,}\s*\Z")
_TABLE_RULE = re.compile(r"\s*={2,}(?: +={2,})+\s*\Z")
_PIPES = re.compile(r"\s*\|(.+)\|\s*\Z")
_BULLET = re.compile(r"(\s*)(?:[-*+•]|#\.|\d+\.|\(?[a-z]\))\s+(?=\S)")
_DIRECTIVE = re.compile(r"\s*(?:\.\. |:[\w -]+:(?:\s|\Z)|<!--|\[//\])")
_OF_VERSION = re.compile(r"\s*:version:\s*(\S+)")
_FENCE = re.compile(r"\s*```")
_PROMPT = re.compile(r"\s*(?:>>>|\.\.\.|In \[|\$) ")
_BEFORE_CODE = re.compile(
    r"\s*(?:\.\. (?:code|code-block|sourcecode|parsed-literal|plot|ipython)::|(?!\s*\.\. ).*::\s*\Z)"
)
_ROLE = re.compile(r":(?:issue|pr|pull|ghissue|ghpull|ticket|ghuser|user|cve|gh|commit):`[^`]*`")
_SUBSTITUTION = re.compile(r"\|\w[\w ]*\|")
_LABELLED = re.compile(r":[\w:.+-]+:`!?([^`<]*?)\s*(?:<[^`>]*>)?`")
_REFERENCE = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseNotes:
    """What was read for the packages of a distribution."""

    notes: Sequence[Note] = ()
    archive: str = ""
    """The file name of the archive that has them; "" if none has."""
    failure: str = ""
    """Why they could not be read."""


def read_release_notes(archive: Archive, seconds: float) -> ReleaseNotes:
    """The entries of the source archive of a version, or of its wheel."""
    try:
        with time_limit(seconds, f"reading the release notes in {archive.path.name}"):
            notes = collect_notes(source_texts(archive, is_release_note))
    except DataError as error:
        return ReleaseNotes(failure=str(error))
    return ReleaseNotes(notes=notes, archive=archive.path.name if notes else "")


def notes_of_part(notes: Sequence[Note], import_name: str, lasts: Collection[str]) -> list[Note]:
    """The entries that may concern a lesser package of a distribution: that name it, or something in it.

    Args:
        lasts: the last components of the names it has.
    """
    own = re.compile(rf"\b{re.escape(import_name.rpartition('.')[2])}\b")
    return [
        note
        for note in notes
        if own.search(note.text) or any(one.name.rpartition(".")[2] in lasts for one in names_in(note.text))
    ]


def is_release_note(path: str) -> bool:
    """Whether a file of a source archive is, by its name, about changes."""
    if not _TEXT.search(path) or _ELSEWHERE.search(path):
        return False
    return bool(_FILE.search(path) or _FOLDER.search(path))


def collect_notes(texts: Iterable[tuple[str, str]]) -> list[Note]:
    """The entries of (path, text) of release notes that name something and speak of a change, each once.

    No more than `MOST_BYTES` are kept, those under the highest versions first.
    """
    found: dict[str, Note] = {}
    for path, text in texts:
        for version, entry in _entries(path, text):
            if _OF_CHANGE.search(entry) and (short := _plain(entry)) and names_in(short):
                found.setdefault(short, Note(text=short, version=version, source=path))
    newest = sorted(found.values(), key=lambda note: _number(note.version), reverse=True)
    size, kept = 0, []
    for note in newest:
        size += len(note.text.encode())
        if size > MOST_BYTES:
            break
        kept.append(note)
    return kept


def _entries(path: str, text: str) -> Iterator[tuple[str, str]]:
    """(version of the heading above it, text) of each list item, paragraph and row of a table."""
    of_file = version = _of_file_name(path)
    lead = ""
    for kind, content in _blocks(text):
        if kind == "version":
            version, lead = content, ""
        elif kind == "heading":
            found = _HEADING.match(content)
            if found and found.group(1).startswith(of_file):
                version = found.group(1)
            lead = content if names_in(_plain(content)) else ""
        elif kind == "item":
            yield version, f"{lead} {content}" if lead and not _OF_CHANGE.search(content) else content
        elif kind == "row":
            yield version, content
        else:
            yield version, content
            lead = content if content.endswith(":") else ""


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of headings, versions, list items, rows of tables and paragraphs."""
    block: list[str] = []
    kind = "paragraph"
    lines = _without_code(text)
    number = 0
    while number < len(lines):
        line, following = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
        number += 1
        bullet, version = _BULLET.match(line), _OF_VERSION.match(line)
        is_table = bool(_TABLE_RULE.match(line) or _PIPES.match(line))
        is_rule = bool(_RULE.match(line.strip()))
        is_heading = not is_rule and not is_table and _is_heading(line, following)
        is_text = bool(line.strip()) and not (is_rule or is_heading or is_table or bullet or _DIRECTIVE.match(line))
        if not is_text and block:
            yield kind, " ".join(" ".join(block).split())
            block, kind = [], "paragraph"
        if is_table:
            number = yield from _table(lines, number - 1)
        elif version:
            yield "version", version.group(1)
        elif is_heading:
            yield "heading", line.strip("# \t")
        elif bullet:
            block, kind = [line[bullet.end() :]], "item"
        elif is_text:
            block.append(line)
    if block:
        yield kind, " ".join(" ".join(block).split())


def _without_code(text: str) -> list[str]:
    """The lines, with blank ones where there are examples of code."""
    kept: list[str] = []
    limit: int | None = None
    """The indentation that ends a literal block."""
    is_fenced = False
    for line in text.expandtabs(4).splitlines():
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(line):
            is_fenced = not is_fenced
            kept.append("")
            continue
        if limit is not None and line.strip() and indent <= limit:
            limit = None
        kept.append("" if is_fenced or limit is not None or _PROMPT.match(line) else line)
        if limit is None and not is_fenced and _BEFORE_CODE.match(line):
            limit = indent
    return kept


def _is_heading(line: str, following: str) -> bool:
    if line.startswith("#"):
        return True
    return bool(line.strip() and _RULE.match(following)) and 2 * len(following.strip()) >= len(line.strip())


def _table(lines: Sequence[str], first: int) -> Generator[tuple[str, str], None, int]:
    """The rows of a table that begins at a line, each cell after the title of its column; returns the line after it."""
    last = first
    while last < len(lines) and lines[last].strip():
        last += 1
    columns = [match.span() for match in re.finditer("=+", lines[first])] if _TABLE_RULE.match(lines[first]) else []
    title: list[str] = []
    row: list[str] = []

    def flush() -> Iterator[tuple[str, str]]:
        if title and any(row):
            yield "row", " ".join(f"{head}: {cell}." for head, cell in zip(title, row, strict=False) if cell)

    for line in lines[first:last]:
        if not re.sub(r"[=\-+|:\s]", "", line):  # a rule
            title = title or row
            row = [] if row is title else row
            continue
        if columns:
            ends = [start for start, _ in columns[1:]] + [None]
            cells = [line[start:end].strip() for (start, _), end in zip(columns, ends, strict=True)]
        else:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if row and columns and not cells[0]:  # goes on from the line above
            row = [" ".join(pair).strip() for pair in zip(row, cells, strict=True)]
            continue
        yield from flush()
        row = cells
    yield from flush()
    return last


def _plain(text: str) -> str:
    for pattern, new in ((_ROLE, ""), (_SUBSTITUTION, ""), (_LABELLED, r"`\1`"), (_REFERENCE, r"`\1`"), (_LINK, r"\1")):
        text = pattern.sub(new, text)
    text = " ".join(text.replace("``", "`").replace("`~", "`").split())
    return printable(text)[:_LONGEST]


def _of_file_name(path: str) -> str:
    found = _IN_FILE_NAME.findall(path)
    return found[-1].replace("_", ".").strip(".") if found else ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
