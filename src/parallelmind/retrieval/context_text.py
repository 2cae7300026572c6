"""What a context says: documents one after another, each under the name and version it belongs to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from parallelmind.retrieval.absence import Absence
from parallelmind.retrieval.budget import Cut, TokenBudget
from parallelmind.retrieval.corpus_rows import CorpusRow, Example
from parallelmind.retrieval.existence import Existence
from parallelmind.retrieval.replacement import Replacement
from parallelmind.retrieval.sections import EXAMPLE_FROM, SAID_IN

SEPARATOR = "\n\n---\n\n"
_LEAST_HEAD, _MOST_OF_HEAD = 48, 256
"""Tokens that each document but the first has at least, if it has so many."""
_SHARE_OF_HEADS = 3
"""A third of the room is kept for documents after the first."""
_SHORT = 500
"""Characters: beside documentation that is no longer, what other pages say is told, too."""

_STARS = {2: "*", 4: "**"}
"""By the kinds of parameters, numbered as in `inspect.Parameter`."""


@dataclass(frozen=True, slots=True)
class Document:
    """A row as it goes into a context."""

    package: str
    version: str
    row: int | None
    """None if it has no row: then it is known to exist, and no more."""
    name: str
    """The name to show: the one asked for, or the public one."""

    def fields(self) -> dict[str, str]:
        return {"package": self.package, "version": self.version, "name": self.name}


@dataclass(frozen=True, slots=True)
class Context:
    text: str
    documents: Sequence[Document]
    """Those that are in it."""
    truncated: bool
    tokens: int | None
    """Known if they had to be counted."""


def document_text(document: Document, row: CorpusRow, *, title: str = "", source: str = "") -> str:
    """The row's documentation under its name, signature and version, with examples; and its code, if that is given."""
    kind = row.type or "object"
    defined = f", defined as {row.path}" if row.path != document.name else ""
    head = f"{document.name}{shown_signature(row)}\n({kind} of {document.package} {document.version}{defined})"
    if row.deprecated:
        head += f"\nDeprecated: {row.deprecated}"
    doc = row.doc.strip()
    parts = [f"{title}{head}"]
    if doc:
        parts.append(doc)
    else:
        members = f" Members: {', '.join(row.members)}." if row.members else ""
        parts.append(f"It has no documentation of its own.{members}")
    if len(doc) <= _SHORT:
        parts += [f"{SAID_IN}{one.source}: {one.text}" for one in row.mentions]
    parts += map(example_text, row.examples)
    if source:
        parts.append(source)
    return "\n\n".join(parts)


def shown_signature(row: CorpusRow) -> str:
    """The signature, or where its text is not known the names of the parameters."""
    if row.signature or row.parameters is None:
        return row.signature
    shown = [f"{_STARS.get(kind, '')}{name}{'=...' * (optional and kind not in _STARS)}"
             for name, kind, optional in row.parameters]  # fmt: skip
    kinds = [kind for _, kind, _ in row.parameters]
    if 3 in kinds and 2 not in kinds:
        shown.insert(kinds.index(3), "*")
    if 0 in kinds:
        shown.insert(kinds.count(0), "/")
    return f"({', '.join(shown)})"


def example_text(example: Example) -> str:
    """An example under where it stands, and what is said right before it."""
    introduction = f" {example.introduction}" if example.introduction else ""
    return f"{EXAMPLE_FROM}{example.source}.{introduction}\n\n{textwrap.indent(example.code, '    ')}"


def presence_text(name: str, package: str, version: str, known: Existence) -> str:
    """What is known of an API that is there and has no documentation of its own."""
    text = f"{name} exists in {package} {version}, without documentation of its own. {known.evidence}"
    return f"{text} It is deprecated: {known.deprecated}" if known.deprecated else text


def deprecated_text(name: str, package: str, version: str, said: str, instead: Replacement | None) -> str:
    """That an API is deprecated, and what to use instead.

    Args:
        said: what the package says when it is asked for the name.
    """
    text = f"{name} is deprecated in {package} {version}."
    if instead is not None:
        text += f" Use {' or '.join(instead.names)} instead."
        text += f" {instead.evidence}" if instead.is_noted else ""
    return f"{text} {package} says: {said}" if said else text


def absence_text(name: str, package: str, version: str, absence: Absence, similar: Sequence[str] = ()) -> str:
    """What is known of an API that the version does not have."""
    sentences = [f"{name} does not exist in {package} {version}.", absence.evidence]
    if absence.last_version:
        sentences.append(f"{package} {absence.last_version} had it.")
    if absence.removed_in:
        sentences.append(f"It was removed in {package} {absence.removed_in}.")
    if absence.next_version:
        sentences.append(f"{package} {absence.next_version} has it, a later version.")
    if absence.instead is not None:
        sentences.append(f"In {package} {version}, use {' or '.join(absence.instead.names)} instead.")
        if absence.moved_because and not (absence.note and absence.note in absence.moved_because):
            sentences.append(absence.moved_because)
    if absence.noted and absence.noted not in sentences:
        sentences.append(absence.noted)
    if similar:
        sentences.append(f"Similar names there: {', '.join(similar)}.")
    text = " ".join(sentences)
    if absence.note and " ".join(absence.note.split()).rstrip(".") not in absence.evidence:
        text += f"\n\n{package} says: {absence.note}"
    return text


def assemble(texts: Sequence[tuple[Document | None, str]], *, budget: TokenBudget | None, max_tokens: int) -> Context:
    """The texts one after another, the best first, within `max_tokens` (0: no limit).

    What is too long loses what is worth least. The first text gets the most, and each of the others at least what is
    worth most of it; where there is no room for that, the last ones are left out.
    """
    whole = SEPARATOR.join(text for _, text in texts)
    if budget is None or not max_tokens:
        return _context(texts, truncated=False, tokens=None)
    fitting = budget.cut(whole, max_tokens)
    if not fitting.truncated:
        return _context(texts, truncated=False, tokens=fitting.tokens)
    joint = budget.count(SEPARATOR)
    most = max(_LEAST_HEAD, min(_MOST_OF_HEAD, max_tokens // _SHARE_OF_HEADS // max(len(texts) - 1, 1) - joint))
    heads = [_tokens(budget.shorten(text, most), budget) for _, text in texts[1:]]
    while heads and sum(heads) + joint * len(heads) > max_tokens // _SHARE_OF_HEADS:
        heads.pop()
    kept: list[tuple[Document | None, str]] = []
    left = max_tokens - sum(heads) - joint * len(heads)
    for place, (document, text) in enumerate(texts[: len(heads) + 1]):
        left += heads[place - 1] if place else 0
        part = budget.shorten(text, left)
        left -= _tokens(part, budget)
        if part.text:
            kept.append((document, part.text))
    while len(kept) > 1 and budget.count(SEPARATOR.join(text for _, text in kept)) > max_tokens:
        kept.pop()  # a text may have more tokens than its parts
    tokens = budget.count(SEPARATOR.join(text for _, text in kept))
    return _context(kept, truncated=True, tokens=tokens)


def _context(texts: Sequence[tuple[Document | None, str]], *, truncated: bool, tokens: int | None) -> Context:
    return Context(
        text=SEPARATOR.join(text for _, text in texts),
        documents=[document for document, _ in texts if document is not None],
        truncated=truncated,
        tokens=tokens,
    )


def _tokens(part: Cut, budget: TokenBudget) -> int:
    return budget.count(part.text) if part.tokens is None else part.tokens
