"""The five documents, and what was seen when they were run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conformance import d000, d001, d002, d003, d004
from tests.conformance.blocks import Block, Document

DOCUMENTS: tuple[Document, ...] = tuple(module.DOCUMENT for module in (d000, d001, d002, d003, d004))
_SEEN = Path(__file__).with_name("seen.json")
_HEAD = """\
## The documents of the request, block by block

The product was built from five documents. Their blocks were run as printed, document by document, in order, in one
folder (`python -m tests.conformance.run`): local folders of the bundled model stand for hub names, small files for the
data sets, 2 processes for 4 or 8, and 12 new tokens for 512; there is no GPU and no network. `make test` repeats it
with the lines of torchrun as one process, `make test-slow` as printed.
"""


def key(document: Document, block: Block) -> str:
    return f"{document.number}:{block.line}"


def stored_seen() -> dict[str, str]:
    """By `key`: what each block that is run came to."""
    found: dict[str, str] = json.loads(_SEEN.read_text(encoding="utf-8"))
    return found


def save_seen(seen: dict[str, str]) -> None:
    _SEEN.write_text(json.dumps(seen, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def render() -> str:
    """The section of docs/compatibility.md."""
    seen = stored_seen()
    parts = [_HEAD]
    differing = ["### What differs, and why", ""]
    for document in DOCUMENTS:
        lines = [
            f"### {document.number}: {document.title}",
            "",
            "| line | block | expected | seen |",
            "|---|---|---|---|",
        ]
        for block in sorted(document.blocks, key=lambda one: one.line):
            result = "differs by design, see below" if block.differs else seen[key(document, block)]
            lines.append(f"| {block.line} | `{_cell(block.shown)}` | {_cell(block.expected)} | {_cell(result)} |")
            if block.differs:
                differing.append(f"- {document.number}, line {block.line}, `{_cell(block.shown)}`: {block.differs}")
        parts.append("\n".join([*lines, ""]))
    return "\n".join([*parts, *differing, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
