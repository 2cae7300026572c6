"""What the release notes of a version say of one name: what takes its place, that it is gone, what it was before."""

from __future__ import annotations

import re
from collections.abc import Iterator

from parallelmind.retrieval.advice import Mention, advised_instead, is_advised, names_in
from parallelmind.retrieval.notes import Note
from parallelmind.retrieval.version_index import VersionIndex

_LETTERS_THAT_TELL = 5
_LETTERS_OF_A_WORD = 12
_OF_AN_END = re.compile(r"\b(?:remov|delet|dropp|gone\b|no longer (?:exist|available)|deprecat|renam)", re.I)
_OF_A_PART = re.compile(
    r"\b(?:argument|parameter|keyword|kwarg|option|setting|support|passing|value|behaviou?r)s?\b", re.I
)


def replacements_noted(index: VersionIndex, name: str) -> Iterator[tuple[list[str], Note]]:
    """(alternatives as the release notes write them, entry) of what they tell to use instead of `name`."""
    for note, mentions in _notes_of(index, name):
        for place, mention in enumerate(mentions):
            if _means(mention.name, name, note.text) and (others := advised_instead(note.text, mentions, place)):
                yield others, note


def formers_noted(index: VersionIndex, name: str) -> Iterator[tuple[str, Note]]:
    """(name as the release notes write it, entry) of what `name` took the place of."""
    for note, mentions in _notes_of(index, name):
        own = {mention.name for mention in mentions if _means(mention.name, name, note.text)}
        for place, mention in enumerate(mentions):
            if not own.isdisjoint(advised_instead(note.text, mentions, place)):
                yield mention.name, note


def end_noted(index: VersionIndex, name: str) -> str:
    """A sentence with what the release notes say of the end of `name` itself; "" if they do not speak of it."""
    for note, mentions in _notes_of(index, name):
        for place, mention in enumerate(mentions):
            is_subject = ("." in mention.name or _tells(mention.name)) and not is_advised(note.text, mentions, place)
            if is_subject and _means(mention.name, name, note.text) and _ends(note.text, mention):
                return cited(index, note)
    return ""


def cited(index: VersionIndex, note: Note) -> str:
    """A sentence, with the name by which the package is installed."""
    return note.cited((index.row(0).distribution if index.rows else "") or index.package)


def _ends(text: str, mention: Mention) -> bool:
    """Whether the sentence that has a name says that what it names has an end, and not a parameter of it."""
    start = max(text.rfind(". ", 0, mention.start), text.rfind(": ", 0, mention.start), 0)
    end = text.find(". ", mention.end)
    sentence = text[start : end if end >= 0 else None]
    return bool(_OF_AN_END.search(sentence)) and not _OF_A_PART.search(sentence)


def _notes_of(index: VersionIndex, name: str) -> Iterator[tuple[Note, list[Mention]]]:
    for note in index.notes_on(name.rpartition(".")[2]):
        yield note, names_in(note.text)


def _means(written: str, name: str, text: str) -> bool:
    """Whether a name in release notes stands for a full name, of which it may be the end."""
    given, asked = written.split("."), name.split(".")
    if given[-1] != asked[-1]:
        return False
    if len(given) == 1:
        return _tells(asked[-1]) or (len(asked) > 1 and bool(re.search(rf"\b{re.escape(asked[-2])}\b", text)))
    if f".{name}".endswith(f".{written}") or f".{written}".endswith(f".{name}"):
        return True
    owner, asked_owner = given[-2].casefold(), asked[-2].casefold() if len(asked) > 1 else ""
    if given[0] == asked[0]:  # written in full, by another way to the same class
        return len(given) > 2 and owner == asked_owner
    return len(given) == 2 and len(owner) > 2 and asked_owner.endswith(owner)


def _tells(last: str) -> bool:
    """Whether a last component is so special that it can hardly be that of something else."""
    if len(last) < _LETTERS_THAT_TELL:
        return False
    return "_" in last.strip("_") or last != last.lower() or len(last) >= _LETTERS_OF_A_WORD
