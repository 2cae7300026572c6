"""What a note on a deprecation means: an object or a part of it, and what to use instead."""

from __future__ import annotations

import re

_OF_A_PART = re.compile(
    r"^(?:deprecated )?(?:since )?[\d.]*[\s:;,]*(?:\*{1,2}\w+\*{1,2}|`+\w+`+ (?:parameter|argument|option|value))"
    r"|\b(?:parameters?|arguments?|keywords?|kwargs?|options?|passing|positional)\b",
    re.I,
)
_USE = re.compile(
    r"(?:\buse|\breplaced (?:by|with)|\brenamed (?:to|as)|\bin favou?r of|\bmoved to|\bsee|\balternative:)\s+"
    r"(?:the\s+)?(?::\w+(?::\w+)*:)?[`'\"]*~?"
    r"([A-Za-z_][\w.]*\w)(?:\(\))?[`'\"]*",
    re.I,
)


def is_of_a_part(note: str) -> bool:
    """Whether a note speaks of a parameter or a value, and not of the object as a whole."""
    return bool(_OF_A_PART.search(note.split(". ")[0]))


def named_replacement(note: str) -> str:
    """The name that a note says to use; "" if it says none."""
    found = _USE.search(note)
    return found.group(1) if found else ""
