"""What is asked of a whole file first: which of its names and attributes are changed where nobody sees it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from parallelmind.retrieval.check.guards import (
    ALL,
    NONE,
    Kind,
    asks_for_versions,
    caught,
    last_name,
    marked,
    names_in,
)  # fmt: skip

_TOUCHING = frozenset(
    ("hasattr", "getattr", "setattr", "delattr", "patch", "object", "multiple", "setitem", "attrgetter", "methodcaller")
)
_NARROWING = frozenset(("isinstance", "issubclass", "hasattr", "setattr", "vars", "type", "cast", "delattr"))
_DOTTED = re.compile(r"[A-Za-z_][\w.]*")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(slots=True)
class Survey:
    """Facts about a file that hold everywhere in it."""

    touched: set[str] = field(default_factory=set)
    """Attributes that are set, deleted, patched or asked for by name somewhere: whether they are there is unclear."""
    narrowed: set[str] = field(default_factory=set)
    """Names whose values are told apart by their class, so that what is known of them is not all."""
    rebound: set[str] = field(default_factory=set)
    """Names that a function changes in a scope around it."""
    flags: set[str] = field(default_factory=set)
    """Names that say which versions there are."""
    silent: frozenset[Kind] = NONE
    """What is not judged in the whole file."""
    lazy_annotations: bool = False
    """Annotations are never evaluated."""


def survey(tree: ast.Module) -> Survey:
    """Look through a file."""
    found = Survey()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            found.touched.add(node.attr)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.rebound.update(node.names)
        elif isinstance(node, ast.Call):
            _look_at_call(node, found)
        elif isinstance(node, ast.Match):
            found.narrowed.add(last_name(node.subject))
        elif isinstance(node, ast.Try) and caught(node.handlers):
            found.flags |= _constants_set(node)
        elif isinstance(node, ast.Assign) and asks_for_versions(node.value, ()):
            found.flags.update(last_name(target) for target in node.targets)
    for statement in tree.body:
        _look_at_top(statement, found)
    return found


def bound_names(body: Sequence[ast.AST]) -> set[str]:
    """The names that statements or expressions give values to, in their own scope."""
    found: set[str] = set()
    for node in _within_scope(body):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
    return found


def _within_scope(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    pending = list(body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, _SCOPES):
            continue
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            # Only an assignment expression reaches out of a comprehension.
            pending += [one.target for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]
            continue
        pending += ast.iter_child_nodes(node)


def _look_at_call(node: ast.Call, found: Survey) -> None:
    name = last_name(node.func)
    if name in _TOUCHING:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            text = argument.value if isinstance(argument, ast.Constant) else None
            if isinstance(text, str) and _DOTTED.fullmatch(text):
                found.touched.update(text.split("."))
        found.touched.update(keyword.arg for keyword in node.keywords if keyword.arg)
    if name in _NARROWING and node.args:
        found.narrowed.update(names_in(node.args[0]))


def _look_at_top(statement: ast.stmt, found: Survey) -> None:
    if isinstance(statement, ast.Assign) and any(last_name(one) == "pytestmark" for one in statement.targets):
        found.silent |= marked([statement.value])
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        name, keywords = last_name(statement.value.func), statement.value.keywords
        if name == "skip" or (name == "importorskip" and any(keyword.arg == "minversion" for keyword in keywords)):
            found.silent = ALL
    elif isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        found.lazy_annotations |= any(alias.name == "annotations" for alias in statement.names)


def _constants_set(node: ast.Try) -> set[str]:
    """The names that say how a try statement went."""
    statements = [*node.body, *(one for handler in node.handlers for one in handler.body), *node.orelse]
    return {
        last_name(target)
        for one in statements
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
        for target in one.targets
    }
