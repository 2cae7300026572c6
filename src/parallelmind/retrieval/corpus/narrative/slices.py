"""The few statements that a statement of a file needs to stand by itself."""

from __future__ import annotations

import ast
import builtins
import functools
import textwrap
from collections.abc import Iterator, Sequence

from parallelmind.retrieval.check.survey import bound_names

_BUILTINS = frozenset(dir(builtins))
_LONGEST_HELPER = 300
_MOST_STATEMENTS = 12
_OF_TESTS = frozenset({"pytest", "unittest", "self", "cls"})
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Slicer:
    """Cuts examples out of one file."""

    def __init__(self, body: Sequence[ast.stmt], lines: Sequence[str], *, in_functions: bool) -> None:
        """`in_functions`: the statements of functions are examples, as in tests, and not the functions."""
        self._lines = lines
        self._body = body
        self._in_functions = in_functions
        self._imports = imports_of(body)
        self._needed = functools.cache(needed)
        self._effects = functools.cache(_effects)
        self._helpers = {
            name: statement
            for statement in body
            if isinstance(statement, ast.Assign | ast.FunctionDef | ast.ClassDef)
            for name in bound_names([statement])
        }

    def slice(self, line: int, most: int) -> str | None:
        """The statement at a line with what it needs, in at most `most` characters; None if it needs more."""
        function, body, place = self._find(line)
        if place is None:
            return None
        kept = [place]
        wanted = set(self._needed(body[place]))
        for earlier in range(place - 1, -1, -1):
            statement = body[earlier]
            bound, changed = self._effects(statement)
            if bound & wanted or changed & wanted:
                kept.append(earlier)
                wanted = (wanted - bound) | self._needed(statement)
            if len(kept) > _MOST_STATEMENTS:
                return None
        if function is not None and wanted & {one.arg for one in _arguments(function)}:
            return None
        before = self._from_module(wanted) if function is not None else self._imported(wanted)
        if before is None:
            return None
        text = "\n".join([*before, *[""] * bool(before), *(self._source(body[number]) for number in sorted(kept))])
        return text if len(text) <= most else None

    def _find(self, line: int) -> tuple[_Function | None, Sequence[ast.stmt], int | None]:
        """The function that a line is in, if it is in one; the statements there, and which of them is at the line."""
        function: _Function | None = None
        body = self._body
        while True:
            place = next((n for n, one in enumerate(body) if _first_line(one) <= line <= (one.end_lineno or 0)), None)
            if place is None or not self._in_functions or function is not None:
                return function, body, place
            inside = body[place]
            if isinstance(inside, ast.FunctionDef | ast.AsyncFunctionDef):
                if line < inside.lineno or inside.decorator_list:
                    return None, (), None
                function = inside
            elif not isinstance(inside, ast.ClassDef):
                return None, (), None
            body = inside.body

    def _from_module(self, wanted: set[str]) -> list[str] | None:
        """What a function needs of its file; None if that is not a little."""
        helpers: dict[str, str] = {}
        pending, seen = set(wanted), set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in _OF_TESTS or (name not in self._imports and name not in self._helpers):
                return None
            if name in self._imports:
                continue
            text = self._source(self._helpers[name])
            if len(text) > _LONGEST_HELPER:
                return None
            helpers[name] = text
            pending |= self._needed(self._helpers[name])
        imported = self._imported(seen - helpers.keys())
        if imported is None or len(helpers) > _MOST_STATEMENTS:
            return None
        texts = {self._helpers[name].lineno: text for name, text in helpers.items()}
        return [*imported, *(text for _, text in sorted(texts.items()))]

    def _imported(self, names: set[str]) -> list[str] | None:
        """The imports of names, as far as the file has them; None if one is of the tests themselves."""
        texts = [self._imports[name] for name in sorted(names) if name in self._imports]
        return None if "" in texts else list(dict.fromkeys(texts))

    def _source(self, statement: ast.stmt) -> str:
        lines = self._lines[_first_line(statement) - 1 : statement.end_lineno]
        return textwrap.dedent("\n".join(line.rstrip() for line in lines))


def imports_of(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The statement that imports each name, and that alone; "" where it is relative, or of tests."""
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = "" if name in _OF_TESTS else ast.unparse(ast.Import([alias]))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            module = node.module or ""
            is_strange = node.level or not module or {"tests", "test", "conftest"} & set(module.split("."))
            for alias in node.names:
                text = "" if is_strange else ast.unparse(ast.ImportFrom(module, [alias], 0))
                found[alias.asname or alias.name] = text
    return found


def needed(statement: ast.stmt) -> set[str]:
    """The names that a statement takes from what is around it."""
    loaded: set[str] = set()
    own: set[str] = set()
    for node in ast.walk(statement):
        match node:
            case ast.Name():
                (loaded if isinstance(node.ctx, ast.Load) else own).add(node.id)
            case ast.arg():
                own.add(node.arg)
            case ast.FunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.Import() | ast.ImportFrom():
                own.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        own -= bound_names([statement])  # x = f(x) needs x
    return loaded - own - _BUILTINS


def _effects(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """(names that it gives values to, other than by importing them; names whose values it changes)."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set(), set()
    return bound_names([statement]), _changed(statement)


def _changed(statement: ast.stmt) -> set[str]:
    """The names whose values a statement changes: x of `x.append(1)`, `x.a = 1` and `x[0] = 1`."""
    parts: list[ast.expr] = []
    if isinstance(statement, ast.Expr):
        parts = [statement.value.func] if isinstance(statement.value, ast.Call) else []
    elif isinstance(statement, ast.Assign):
        parts = statement.targets
    return {name for part in parts if (name := _base(part)) and not isinstance(part, ast.Name)}


def _base(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _first_line(statement: ast.stmt) -> int:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return min([statement.lineno, *(one.lineno for one in statement.decorator_list)])
    return statement.lineno


def _arguments(function: _Function) -> Iterator[ast.arg]:
    given = function.args
    yield from (*given.posonlyargs, *given.args, *given.kwonlyargs)
    yield from (one for one in (given.vararg, given.kwarg) if one is not None)
