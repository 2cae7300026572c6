"""Code that is not judged, since it is written for several versions, or expects to fail."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

Kind = Literal["absent", "deprecated", "arguments"]
ALL: frozenset[Kind] = frozenset(("absent", "deprecated", "arguments"))
NONE: frozenset[Kind] = frozenset()
_FAILURES: frozenset[Kind] = frozenset(("absent", "arguments"))
_DEPRECATIONS: frozenset[Kind] = frozenset(("deprecated",))

_OF_VERSIONS = re.compile(
    r"version|^py_?\d|pypy|_(?:ge|gt|lt|le|gte|lte|v)_?\d|^_?(?:has|have)_"
    r"|hasattr|find_spec|available|installed|compat|supported|importable",
    re.I,
)
_EXPECTING_FAILURE = frozenset(("raises", "assertRaises", "assertRaisesRegex", "suppress", "RaisesGroup"))
_EXPECTING_WARNINGS = frozenset(
    ("warns", "deprecated_call", "catch_warnings", "assertWarns", "assertWarnsRegex", "filterwarnings", "simplefilter")
)
_SKIPPING = re.compile(r"skip|xfail|expectedFailure|importorskip|requires|parametrize_with_versions", re.I)
_CAUGHT: dict[str, frozenset[Kind]] = {
    "ImportError": frozenset(("absent",)),
    "ModuleNotFoundError": frozenset(("absent",)),
    "AttributeError": frozenset(("absent",)),
    "TypeError": frozenset(("arguments",)),
    "Exception": _FAILURES,
    "BaseException": _FAILURES,
    "DeprecationWarning": _DEPRECATIONS,
    "PendingDeprecationWarning": _DEPRECATIONS,
    "FutureWarning": _DEPRECATIONS,
    "Warning": _DEPRECATIONS,
}


def asks_for_versions(test: ast.expr, flags: Collection[str]) -> bool:
    """Whether a condition asks which versions there are, or what they have; `flags` are names that say so."""
    return any(
        name in flags or _OF_VERSIONS.search(name) or (name.isupper() and len(name) > 1 and name != "TYPE_CHECKING")
        for name in names_in(test)
    )


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition holds for type checkers alone."""
    return isinstance(test, ast.Name | ast.Attribute) and last_name(test) == "TYPE_CHECKING"


def constant_truth(test: ast.expr) -> bool | None:
    """The value of a condition that is written out, such as `if False`; None for others."""
    return bool(test.value) if isinstance(test, ast.Constant) else None


def caught(handlers: Iterable[ast.ExceptHandler]) -> frozenset[Kind]:
    """What would not be seen in the body of a try statement."""
    found: frozenset[Kind] = NONE
    for handler in handlers:
        if handler.type is None:
            return _FAILURES
        types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        for one in types:
            name = last_name(one)
            if name in _CAUGHT:
                found |= _CAUGHT[name]
            elif not name or not name[0].isupper() or name.isupper():  # a variable: it may be any of them
                found |= ALL
    return found


def expected(context: ast.expr) -> frozenset[Kind]:
    """What a with statement makes of the code in it: failures are meant, or warnings are."""
    name = last_name(context.func if isinstance(context, ast.Call) else context)
    if name in _EXPECTING_FAILURE:
        return ALL
    return _DEPRECATIONS if name in _EXPECTING_WARNINGS else NONE


def marked(decorators: Iterable[ast.expr]) -> frozenset[Kind]:
    """What decorators make of the code below them, such as a test that is skipped for some versions."""
    found: frozenset[Kind] = NONE
    for decorator in decorators:
        for name in names_in(decorator):
            if _SKIPPING.search(name):
                return ALL
            if name in _EXPECTING_WARNINGS:
                found |= _DEPRECATIONS
    return found


def last_name(node: ast.AST) -> str:
    """The last component of a dotted name; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def names_in(node: ast.AST) -> Iterator[str]:
    """All names and attributes in an expression."""
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr
