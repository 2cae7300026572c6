"""What a context says: documents one after another, each under the name and version it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallelmind.retrieval.absence import Absence
from parallelmind.retrieval.budget import TokenBudget
from parallelmind.retrieval.corpus_rows import CorpusRow
from parallelmind.retrieval.existence import Existence
from parallelmind.retrieval.replacement import Replacement

SEPARATOR = "\n\n---\n\n"


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


def document_text(document: Document, row: CorpusRow, *, title: str = "") -> str:
    """The row's documentation under its name, signature and version."""
    kind = row.type or "object"
    defined = f", defined as {row.path}" if row.path != document.name else ""
    head = f"{document.name}{row.signature}\n({kind} of {document.package} {document.version}{defined})"
    if row.deprecated:
        head += f"\nDeprecated: {row.deprecated}"
    doc = row.doc.strip()
    if not doc:
        doc = "It has no documentation of its own."
        if row.members:
            doc += f" Members: {', '.join(row.members)}."
    return f"{title}{head}\n\n{doc}"


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
    if absence.note:
        text += f"\n\n{package} says: {absence.note}"
    return text


def assemble(
    texts: Sequence[tuple[Document | None, str]], *, fill: bool, budget: TokenBudget | None, max_tokens: int
) -> Context:
    """The texts one after another, within `max_tokens` (0: no limit).

    With `fill`, texts that do not fit whole are left out (never the first). Without it, the text that reaches the limit
    is cut, and the context says that it is truncated.
    """
    parts: list[str] = []
    documents: list[Document] = []
    tokens: int | None = None
    for document, text in texts:
        candidate = SEPARATOR.join([*parts, text])
        if budget and max_tokens:
            cut = budget.cut(candidate, max_tokens)
            if cut.truncated and fill and parts:
                continue
            if cut.truncated:
                if len(cut.text) > len(SEPARATOR.join([*parts, ""])):  # something of this text is left
                    documents += [document] if document else []
                return Context(text=cut.text, documents=documents, truncated=True, tokens=cut.tokens)
            tokens = cut.tokens
        documents += [document] if document else []
        parts.append(text)
    return Context(text=SEPARATOR.join(parts), documents=documents, truncated=False, tokens=tokens)
