"""An object of a package as the builder finds it, before it becomes a row."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from parallelmind.retrieval.corpus_rows import Example, Mention

_TEST_MODULES = frozenset({"tests", "test", "testing_tests", "conftest", "_tests", "setup", "__main__"})
_CALLED_NAME = re.compile(r"[\w.]+(?=\()")
_LONGEST_SIGNATURE = 2000


@dataclass(slots=True, kw_only=True)
class PackageObject:
    """A module, class, function … and all names that reach it."""

    path: str
    """Where it is defined."""
    type: str
    doc: str = ""
    signature: str = ""
    members: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    """Public dotted names, `path` among them if it is public."""
    source: str = "static"
    """Where `doc` was found: static, add_newdoc or runtime."""
    code: str = ""
    """Source code; "" if it is compiled or generated."""
    place: str = ""
    """File and lines of `code` in the archive: `pkg/core.py:10-25`."""
    home: str = ""
    """Where the running package says it is defined, also if that is in another package."""
    deprecated: str = ""
    """What the package says about its end."""
    parameters: tuple[tuple[str, int, bool], ...] | None = None
    """Name, kind as in `inspect.Parameter`, and whether it can be left out; None if they are not known."""
    numbers: set[int] = field(default_factory=set)
    """Those by which the namespaces of the running package refer to it."""
    examples: tuple[Example, ...] = ()
    mentions: tuple[Mention, ...] = ()


def is_public(name: str) -> bool:
    """Whether no component of a dotted name is private or of a test."""
    return not any(part.startswith("_") or part in _TEST_MODULES for part in name.split("."))


def is_test_module(part: str) -> bool:
    """Whether a module of this name holds tests or runs when it is imported."""
    return part in _TEST_MODULES or part.startswith("test_")


def split_signature(doc: str) -> str:
    """The signature that compiled functions write at the beginning of their docstring, on one line, or ""."""
    called = _CALLED_NAME.match(doc)
    if called is None:
        return ""
    depth = 0
    for place in range(called.end(), min(len(doc), called.end() + _LONGEST_SIGNATURE)):
        depth += {"(": 1, ")": -1}.get(doc[place], 0)
        if depth == 0:
            result, _, _ = doc[place + 1 :].partition("\n")
            if result.strip() and not result.lstrip().startswith("->"):
                return ""  # a sentence that begins with a call
            return " ".join(doc[called.end() : place + 1].split()) + result.rstrip()
    return ""
