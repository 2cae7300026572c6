"""What documentation says about the end of an object: that it is deprecated, and what to use instead."""

from __future__ import annotations

import inspect
import re

_DIRECTIVE = re.compile(
    r"^(?:\.\. |!!! )(?:deprecated|versionremoved)(?:::|\b)[ \t]*(.*(?:\n[ \t]+.*|\n[ \t]*(?=\n[ \t]))*)", re.M
)
_SENTENCE = re.compile(r"^(?:[*\[(:_ ]*)deprecated\b.*", re.I)
_SECTION = re.compile(
    r"^(?:[A-Z]\w+(?: \w+)?\n[-=~]{3,}|(?:Args|Arguments|Parameters|Returns|Attributes|Raises):|:param)", re.M
)
_OF_A_PART = re.compile(
    r"^[\d.]*[\s:;,]*(?:\*{1,2}\w+\*{1,2}|`+\w+`+ (?:parameter|argument|option|keyword|attribute|value))"
    r"|\b(?:parameters?|arguments?|keywords?|options?|values?|passing|positional)\b",
    re.I,
)
_USE = re.compile(
    r"(?:\buse|\breplaced (?:by|with)|\brenamed (?:to|as)|\bin favou?r of|\bmoved to|\bsee)\s+(?:the\s+)?"
    r"(?::\w+(?::\w+)*:)?[`'\"]*~?([A-Za-z_][\w.]*\w)(?:\(\))?[`'\"]*",
    re.I,
)


def deprecation_note(doc: str) -> str:
    """The note that an object as a whole is deprecated, on one line; "" if the documentation has none.

    Notes on parameters are not meant: they stand in a section, or name the parameter.
    """
    text = inspect.cleandoc(doc)
    head = text.split("\n\n", 1)[0]
    section = _SECTION.search(text)
    if (found := _DIRECTIVE.search(text, 0, section.start() if section else len(text))) is not None:
        note = " ".join(found.group(1).split())
        return (
            ""
            if _OF_A_PART.search(note)
            else f"deprecated since {note}"
            if note[:1].isdigit()
            else f"deprecated: {note}"
        )
    first = " ".join(head.split())
    return first if _SENTENCE.match(first) and not _OF_A_PART.search(first.split(". ")[0]) else ""


def named_replacement(note: str) -> str:
    """The name that a note on a deprecation says to use; "" if it says none."""
    found = _USE.search(note)
    return found.group(1) if found else ""
