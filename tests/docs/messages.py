"""The texts of all errors that users can meet, read from the source without running it.

A template is a message with `…` for whatever is filled in when it is raised. A message that is put together over
several functions is followed: through local variables, module constants, functions that return text, and parameters
that callers fill with prose, such as the reason in `refuse(member, "is encrypted")`.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallelmind import errors

SOURCE = Path(__file__).parents[2] / "src" / "parallelmind"

EXCEPTIONS = {
    name
    for name, member in vars(errors).items()
    if isinstance(member, type) and issubclass(member, errors.ParallelMindError)
}

CARRIERS: dict[str, tuple[int, str, str]] = {
    **{name: (0, "message", f"`{name}`") for name in EXCEPTIONS},
    "ArgumentTypeError": (0, "message", "usage"),
    "ApiError": (1, "message", "HTTP"),
    "HTTPException": (1, "detail", "HTTP"),
    "incompatible": (1, "message", "HTTP 400"),
    "AttemptError": (1, "message", "row"),
    "replace": (9, "message", "row"),
    "Problem": (2, "reason", "row"),
    "RawRow": (2, "error", "row"),
    "Death": (0, "reason", "row"),
    "BranchResult": (9, "error", "row"),
    "_say": (9, "error", "`DataError`"),
}
"""What carries a text to the user: its place in the call by position (9: never) and by name, and what it becomes."""

MORE_CARRIERS = {
    "cli/args.py": {"error": (0, "message", "usage")},
    "server/schemas.py": {"ValueError": (0, "message", "HTTP 400")},
    "tasks/batch_worker.py": {"fail": (1, "error", "row")},
    "tasks/answer_workers.py": {"answer_row": (9, "error", "row")},
}
"""Such calls in one module only; elsewhere the name means something else."""

VARIABLES = {
    ("engine/adjustment.py", "reason", "row"),
    ("engine/scheduler.py", "reason", "row"),
    ("jobs/coordinator.py", "given_up", "`JobError`"),
    ("retrieval/store.py", "missing", "row"),
    ("server/service.py", "said", "HTTP 503"),
    ("server/problems.py", "_HTTP_MESSAGES", "HTTP"),
}
"""Texts that reach the user by another way than a call: the module, the variable that holds them, what they become."""

NOT_FOLLOWED = {"where", "name", "place", "found", "what", "path", "url"}
"""Names of places and values: they are filled in from the user's data."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Template:
    """One message."""

    text: str
    kind: str
    """What it becomes: an exception, an HTTP status, the error of a row, or wrong usage of a command."""
    module: str
    line: int


def templates(source: Path = SOURCE) -> list[Template]:
    """Every message of the package, by the place that raises it."""
    return [template for path in sorted(source.rglob("*.py")) for template in _Module(path, source).templates()]


class _Module:
    def __init__(self, path: Path, source: Path) -> None:
        self.name = path.relative_to(source).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.functions: dict[str, Function] = {}
        self.calls: list[tuple[ast.Call, Function | None]] = []
        self.statements: list[tuple[ast.AST, Function | None]] = []
        self._visit(tree, None)

    def templates(self) -> Iterator[Template]:
        for message, kind, function in self._messages():
            for text in self.texts(message, function):
                shown = re.sub(r"…+", "…", " ".join(text.split()))
                if function is None:  # a form for str.format
                    shown = re.sub(r"\{\w+\}", "…", shown)
                if re.search(r"[a-z]{2}", shown):
                    yield Template(shown, kind, self.name, message.lineno)

    def _messages(self) -> Iterator[tuple[ast.expr, str, Function | None]]:
        carriers = CARRIERS | MORE_CARRIERS.get(self.name, {})
        for call, function in self.calls:
            if (carrier := carriers.get(_called(call))) is None:
                continue
            position, name, kind = carrier
            if (message := _argument(call, position, name)) is not None:
                yield message, _with_status(kind, call), function
        for module, variable, kind in sorted(VARIABLES):
            if module == self.name:
                for node, function in self.statements:
                    for value in _assigned(node, variable):
                        yield value, kind, function

    def texts(self, node: ast.expr, function: Function | None, depth: int = 0) -> list[str]:
        """What the expression can say; `…` for what only a run knows."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.Constant(value=None):
                return []
            case ast.JoinedStr(values=parts):
                return self._joined(
                    [
                        self.texts(p, function, depth)
                        if isinstance(p, ast.Constant)
                        else self._field(p, function, depth)
                        for p in parts
                    ]
                )
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._joined([self.texts(left, function, depth), self.texts(right, function, depth)])
            case ast.IfExp(body=body, orelse=orelse):
                return [*self.texts(body, function, depth), *self.texts(orelse, function, depth)]
            case ast.BoolOp(values=values) | ast.Dict(values=values):
                return [text for value in values for text in self.texts(value, function, depth)]
            case ast.Tuple(elts=[first, *_]):
                return self.texts(first, function, depth)
            case ast.Name(id=name) if depth < 4:
                return self._named(name, function, depth + 1) or ["…"]
            case ast.Call() if depth < 4 and _called(node) in self.functions:
                called = self.functions[_called(node)]
                returned = [r.value for r in _within(called) if isinstance(r, ast.Return) and r.value is not None]
                return [text for value in returned for text in self.texts(value, called, depth + 1)]
        return ["…"]

    def _field(self, node: ast.expr, function: Function | None, depth: int) -> list[str]:
        value = node.value if isinstance(node, ast.FormattedValue) else node
        if isinstance(value, ast.Name) and value.id not in NOT_FOLLOWED:
            return self.texts(value, function, depth)
        return ["…"]

    def _named(self, name: str, function: Function | None, depth: int) -> list[str]:
        if function is None or not (given := self._given(name, function, depth)):
            constant = self.constants.get(name)
            given = self.texts(constant, None, depth) if constant is not None else []
        return given if any(_is_prose(text) for text in given) else []

    def _given(self, name: str, function: Function, depth: int) -> list[str]:
        """By assignments in the function, or by the calls of it."""
        if values := [value for node in _within(function) for value in _assigned(node, name)]:
            return [text for value in values for text in self.texts(value, function, depth)]
        parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        if name not in parameters:
            return []
        position = parameters.index(name) - (parameters[0] in ("self", "cls"))
        found = []
        for call, caller in self.calls:
            if _called(call) == function.name and (value := _argument(call, position, name)) is not None:
                found += self.texts(value, caller, depth)
        return found

    def _joined(self, parts: list[list[str]]) -> list[str]:
        return ["".join(chosen) for chosen in itertools.product(*parts)]

    def _visit(self, node: ast.AST, function: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                self.functions[child.name] = child
                self._visit(child, child)
                continue
            self.statements.append((child, function))
            if isinstance(child, ast.Call):
                self.calls.append((child, function))
            self._visit(child, function)


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _with_status(kind: str, call: ast.Call) -> str:
    match kind, call.args:
        case "HTTP", [ast.Constant(value=int(status)), *_]:
            return f"HTTP {status}"
    return kind


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if 0 <= position < len(call.args) else None


def _within(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, without the functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, Function):
            waiting += ast.iter_child_nodes(node)


def _assigned(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a statement assigns to a variable."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or node.value is None:
        return
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        yield from (value for place, value in pairs if _target(place) == name)


def _target(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _target(value)
    return ""


def _is_prose(text: str) -> bool:
    """Rather than a name or a value."""
    return len(re.findall(r"[A-Za-z]{2,}|…", text)) > 1 and re.search(r"[a-z]{2}", text) is not None
