"""What the files of a package say that it binds, and looking at the running package does not show."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from typing import Iterator  # noqa: UP035 - as Python 3.7 has it

from .description import tree_of
from .objects import home_module, is_a


def file_of(cls: type) -> str:
    """The file that a class is written in: its `__module__` may name another, as httpx's do."""
    for value in vars(cls).values():
        code = getattr(inspect.unwrap(value), "__code__", None) if is_a(value, types.FunctionType) else None
        if code is not None and value.__qualname__.startswith(cls.__qualname__ + "."):
            return str(code.co_filename)
    return str(getattr(sys.modules.get(home_module(cls)), "__file__", None) or "")


def note_assigned(node: ast.AST, qualified: str, found: dict[str, set[str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = qualified + child.name
            found.setdefault(name, set()).update(self_names(child))
            note_assigned(child, name + ".", found)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            note_assigned(child, qualified + child.name + ".<locals>.", found)
        elif isinstance(child, (ast.If, ast.Try)):
            note_assigned(child, qualified, found)


def self_names(cls: ast.ClassDef) -> Iterator[str]:
    for method in cls.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.args.args:
            first = method.args.args[0].arg
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_name(node.value, first):
                    yield node.attr
                elif isinstance(node, ast.Call):
                    yield from names_set_by(node, first)
                elif (
                    isinstance(node, ast.Subscript)
                    and isinstance(node.ctx, ast.Store)
                    and is_dict_of(node.value, first)
                ):
                    yield from (text_of(part) for part in ast.walk(node.slice) if is_constant_text(part))


def names_set_by(call: ast.Call, first: str) -> Iterator[str]:
    """The names that `setattr(self, "a", 1)`, `object.__setattr__(self, "a", 1)`, `self.__dict__.update(a=1)` set."""
    function = call.func
    called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if called in ("setattr", "__setattr__") and len(call.args) > 1 and is_name(call.args[0], first):
        if is_constant_text(call.args[1]):
            yield text_of(call.args[1])
    elif called == "update" and isinstance(function, ast.Attribute) and is_dict_of(function.value, first):
        for keyword in call.keywords:
            if keyword.arg:
                yield keyword.arg
        for given in call.args:
            if isinstance(given, ast.Dict):
                for key in given.keys:
                    if key is not None and is_constant_text(key):
                        yield text_of(key)


def is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def is_dict_of(node: ast.AST, name: str) -> bool:
    """Whether it is `self.__dict__` or `vars(self)`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "__dict__" and is_name(node.value, name)
    return isinstance(node, ast.Call) and is_name(node.func, "vars") and any(is_name(one, name) for one in node.args)


def is_constant_text(node: ast.AST) -> bool:
    return isinstance(getattr(node, "value", getattr(node, "s", None)), str)


def text_of(node: ast.AST) -> str:
    """Of a constant; `s` is what Python 3.7 calls it."""
    return str(getattr(node, "value", getattr(node, "s", "")))


def names_bound_elsewhere(module: types.ModuleType) -> set[str]:
    """The names that a module's file binds only under a condition: if a dependency or another system is there."""
    path = str(getattr(module, "__file__", None) or "")
    tree = tree_of(path) if path.endswith(".py") else None
    found: set[str] = set()
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and not is_never_run(node)):
            for child in ast.walk(node):
                if isinstance(child, (ast.Import, ast.ImportFrom)):
                    found.update((one.asname or one.name).partition(".")[0] for one in child.names if one.name != "*")
    return found


def is_never_run(node: ast.If) -> bool:
    """Whether it is only for type checkers."""
    return any(getattr(one, "id", getattr(one, "attr", "")) == "TYPE_CHECKING" for one in ast.walk(node.test))
