"""Functions that do nothing but call another one: what they call does what they do."""

from __future__ import annotations

import ast
import textwrap

from parallelmind.retrieval.corpus.objects import PackageObject

_MOST_LINES = 80
_WARNS = ("warn", "warn_deprecated", "warn_external", "deprecated", "deprecate")


def only_call(item: PackageObject) -> str:
    """The dotted name that the code of a function or method calls, and does nothing else; "" if there is none.

    Warnings and documentation do not count. What is called is given all parameters, in their order or by name.
    """
    if item.type not in ("function", "method") or item.code.count("\n") > _MOST_LINES:
        return ""
    try:
        node = ast.parse(textwrap.dedent(item.code)).body[0]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        return ""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    body = [statement for statement in node.body if not _is_aside(statement)]
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr):
        return ""
    call = body[0].value.value if isinstance(body[0].value, ast.Await) else body[0].value
    if not isinstance(call, ast.Call) or not _gives_all(call, node):
        return ""
    name = _dotted(call.func)
    return "" if name.startswith("super") or name.rpartition(".")[2] == node.name else name


def _is_aside(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    return isinstance(value, ast.Constant) or (
        isinstance(value, ast.Call) and _dotted(value.func).rpartition(".")[2].lstrip("_") in _WARNS
    )


def _gives_all(call: ast.Call, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether every parameter is passed on as it is."""
    arguments = node.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [one.arg for one in (arguments.vararg, arguments.kwarg) if one is not None]
    given = {ast.unparse(one).lstrip("*") for one in (*call.args, *(word.value for word in call.keywords))}
    return all(name in given for name in names if name not in ("self", "cls"))


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
