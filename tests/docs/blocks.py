"""What the documents tell readers to type: fenced blocks, and the commands in those of the shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_GENERATED = {"docs/cli.md", "docs/compatibility.md", "docs/errors.md", "docs/models.md"}
"""Made from the source, the parsers and from tests, which check them."""
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in (
        *sorted(ROOT.glob("README*.md")),
        *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if str(path.relative_to(ROOT)) not in _GENERATED
]
_SHELLS = {"sh", "bash", "shell", "console"}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`([\w./-]+\.\w+)`:\n\s*\Z")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PROMPT = re.compile(r"^(?:\.venv/bin/)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    document: str
    section: int
    """How many headings of the second level are above it."""
    line: int
    language: str
    text: str
    named: str | None = None
    """The file that the sentence before says it is: … `train.jsonl`:"""

    @property
    def is_shell(self) -> bool:
        return self.language in _SHELLS

    @property
    def file_name(self) -> str | None:
        """The file that a block is, by the sentence before or a first line such as `# train.yaml`; None: no file."""
        found = re.match(r"# ([\w./-]+\.\w+)\n", self.text)
        return found.group(1) if found else self.named


@dataclass(frozen=True)
class Command:
    """One command of a shell block."""

    document: str
    line: int
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    """Assignments in front of it."""
    piped_from: tuple[str, ...] = ()
    """The command on the left of a pipe."""
    output: str | None = None
    """The file behind a >."""

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        inner = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("text")) + 1
        section = len(re.findall(r"^## ", text[: match.start()], re.MULTILINE))
        named = _NAMED.search(text[: match.start()])
        found.append(Block(document, section, line, match["language"].strip(), inner, named[1] if named else None))
    return found


def prose_of(document: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a shell block; a text in quotes and a line that ends with a backslash go on in the next line."""
    pending, first = "", block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if not pending:
            first = number
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # within quotes
            pending += "\n"
            continue
        pending = ""
        yield from _split(words, block.document, first)
    assert not pending, f"{block.document}:{first}: a quote or a line is not closed: {pending}"


def _split(words: list[str], document: str, line: int) -> Iterator[Command]:
    while "&&" in words:
        place = words.index("&&")
        yield from _split(words[:place], document, line)
        words = words[place + 1 :]
    if words and words[-1] == "&":
        words = words[:-1]
    left: list[str] = []
    if "|" in words:
        place = words.index("|")
        left, words = words[:place], words[place + 1 :]
    output = None
    if len(words) > 2 and words[-2] == ">":
        words, output = words[:-2], words[-1]
    environment = []
    if words and words[0] == "export":
        words = words[1:]
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words[0].partition("=")
        environment.append((name, value))
        words = words[1:]
    if words:
        words = [_PROMPT.sub("", words[0]), *words[1:]]
    if words or environment:
        yield Command(document, line, tuple(words), tuple(environment), tuple(left), output)
