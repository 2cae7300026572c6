"""Say of dotted names whether they exist, by importing and asking for them. Needs nothing but the standard library.

Runs in the environment that holds one version of a package (`label.py` and `questions.py` start it there), because only
the version itself knows its names. Reads one JSON object from stdin, `{"names": [...], "prelude": "..."}`, and writes a
line of JSON for each name.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import re
import sys
import textwrap
import types
import warnings
from typing import Any

MISSING = object()
_OLD = re.compile(r"deprecat|RemovedIn|Removed\w*Warning|PendingDeprecation", re.IGNORECASE)
_DIRECTIVE = re.compile(r"^\.\. deprecated::(.*(?:\n[ \t]+.*|\n(?=\n[ \t]))*)", re.MULTILINE)
_SUBJECT = re.compile(r"[*`'\"]+[~.\w]*?(\w+)(?:\(\))?[*`'\"]")
_TELLS_INSTEAD = re.compile(r"^[\d.]*\s*(?:use|please|superseded|renamed|replaced|deprecated|moved)\b", re.IGNORECASE)
_WARNS = re.compile(r"(?:^|\.)(?:_?warn\w*|_?deprecate|_?deprecation_warning)$", re.IGNORECASE)
_HELPER = re.compile(r"warn|deprecat", re.IGNORECASE)
_FIRST_LINE = re.compile(r"^(?:\[\*Deprecated\*\]|\**deprecated\b|.*\(deprecated)", re.IGNORECASE)
_ABOUT_PARAMETER = re.compile(r":paramref:|\b(?:parameters?|arguments?|keywords?|kwargs?|attribute accepts)\b")
_DECORATOR = re.compile(r"deprecat", re.IGNORECASE)
_NOT_THE_NAME = re.compile(r"param|argument|make_keyword_only|_kwarg|_copy_docstring", re.IGNORECASE)


class UnimportableError(Exception):
    """A module that is there fails at import: nothing is known of its names."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.load(sys.stdin)
    exec(task.get("prelude", ""), {})
    for name in task["names"]:
        answers.write(json.dumps(answer(name), ensure_ascii=False) + "\n")
        answers.flush()


def answer(name: str) -> dict[str, Any]:
    """`status` is present, absent, instance or unknown; the rest says what was found, or why not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = find(name)
        except UnimportableError as error:
            return {"name": name, "status": "unknown", "proof": str(error)}
    if isinstance(found, str):
        parent, _, last = name.rpartition(".")
        owner = found_object(parent)
        if inspect.isclass(owner) and last in instance_attributes(owner):
            return {"name": name, "status": "instance", "proof": "assigned to self or only annotated"}
        if inspect.isclass(owner) and inspect.getattr_static(owner, last, MISSING) is not MISSING:
            return {"name": name, "status": "unknown", "proof": f"raises at access: {found}"}
        return {"name": name, "status": "absent", "proof": found}
    owner, value = found
    result: dict[str, Any] = {"name": name, "status": "present", "type": "attribute", "same": [], "doc": ""}
    try:
        result["type"] = kind_of(owner, name, value)
        result["same"] = same_names(owner, name, value)
        result["doc"] = first_line(owner, name, value)
        how = deprecation(owner, name, value, caught)
    except Exception:  # a proxy for something that is not there, such as flask.request outside a request
        return result
    if how:
        result["deprecated"] = how
    return result


def find(name: str) -> Any:
    """(owner, object), or why there is none."""
    root, *rest = name.split(".")
    try:
        value: Any = importlib.import_module(root)
    except ImportError as error:
        return f"ImportError: {error}"
    return _walk(None, value, root, rest)


def _walk(owner: Any, value: Any, path: str, rest: list[str]) -> Any:
    if not rest:
        return owner, value
    part, longer = rest[0], f"{path}.{rest[0]}"
    failure = ""
    try:
        inner = getattr(value, part)
    except AttributeError as error:
        failure = f"AttributeError: {error}"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    else:
        found = _walk(value, inner, longer, rest[1:])
        if not isinstance(found, str):
            return found
        failure = found
    if isinstance(value, types.ModuleType) and part.isidentifier():
        module = _import(longer)
        if module is not None:
            found = _walk(value, module, longer, rest[1:])
            return found if not isinstance(found, str) or len(rest) > 1 else failure
    return failure[:160]


def _import(path: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            return None
        raise UnimportableError(f"{path}: {type(error).__name__}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UnimportableError(f"{path}: {type(error).__name__}: {error}"[:160]) from None


def found_object(name: str) -> Any:
    try:
        found = find(name) if name else ""
    except UnimportableError:
        return MISSING
    return MISSING if isinstance(found, str) else found[1]


def instance_attributes(owner: type) -> list[str]:
    """Names that methods of the class or its bases assign to `self`, and fields that are only annotated."""
    names: list[str] = []
    for base in owner.__mro__:
        kept = dict(vars(base))
        for field in ("__annotations__", "__slots__", "__fields__"):
            listed = kept.get(field)
            names += listed if isinstance(listed, (dict, list, tuple)) else ()
        names += _assigned_to_self(base)
    fields = getattr(owner, "model_fields", None)
    return names + list(fields if isinstance(fields, dict) else ())


@functools.cache
def _assigned_to_self(owner: type) -> list[str]:
    tree = parsed(owner)
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)] if tree else []
    return [
        node.attr
        for node in stored
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]


def parsed(value: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return None


def static(owner: Any, name: str, value: Any) -> Any:
    """What stands in the class or module itself: properties as such, no bound methods."""
    if not inspect.isclass(owner):
        return value
    return inspect.getattr_static(owner, name.rpartition(".")[2], value)


def kind_of(owner: Any, name: str, value: Any) -> str:
    kept = static(owner, name, value)
    if isinstance(value, types.ModuleType):
        return "module"
    if inspect.isclass(value):
        return "class"
    if isinstance(kept, property) or (hasattr(type(kept), "__get__") and not callable(value)):
        return "property"
    if inspect.isroutine(value):
        return "method" if inspect.isclass(owner) else "function"
    return "attribute"


def same_names(owner: Any, name: str, value: Any) -> list[str]:
    """Where it is defined, by its own account, if asking there gives the same object."""
    last = name.rpartition(".")[2]
    candidates: list[str] = []
    if isinstance(value, types.ModuleType):
        candidates.append(value.__name__)
    elif isinstance(getattr(value, "__qualname__", None), str) and "<" not in value.__qualname__:
        candidates.append(f"{value.__module__}.{value.__qualname__}")
    if inspect.isclass(owner):
        bases = [base for base in owner.__mro__ if last in vars(base)] or [owner]
        candidates += [f"{base.__module__}.{base.__qualname__}.{last}" for base in (bases[0], owner)]
    elif isinstance(owner, types.ModuleType):
        candidates.append(f"{owner.__name__}.{last}")
    here = static(owner, name, value)
    same = []
    for candidate in dict.fromkeys(candidates):
        if candidate == name:
            continue
        try:
            found = find(candidate)
        except UnimportableError:
            continue
        if not isinstance(found, str) and static(found[0], candidate, found[1]) is here:
            same.append(candidate)
    return same


def first_line(owner: Any, name: str, value: Any) -> str:
    """The first line of its own docstring: not one that it has from its type."""
    if not (inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, types.ModuleType)):
        value = static(owner, name, value)
        if not isinstance(value, property):
            return ""
    doc = getattr(value, "__doc__", None)
    lines = inspect.cleandoc(doc).strip().splitlines() if isinstance(doc, str) else []
    return lines[0].strip()[:60] if lines else ""


def deprecation(owner: Any, name: str, value: Any, caught: Any) -> tuple[str, str] | None:
    """(how that is known, what is said)."""
    last = name.rpartition(".")[2]
    for warning in caught:
        text = str(warning.message)
        if issubclass(warning.category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)) and re.search(
            rf"\b{re.escape(last)}\b", text
        ):
            return "warning at access", squeeze(text)
    kept = static(owner, name, value)
    inner = getattr(kept, "fget", None) or getattr(kept, "__func__", None) or kept
    for candidate in (value, kept, inner):
        message = getattr(candidate, "__dict__", {}).get("__deprecated__")
        if isinstance(message, str):
            return "__deprecated__", squeeze(message)
    if inspect.isroutine(inner) or inspect.isclass(inner):
        said = said_in_code(inner)
        if said:
            return said
    if inspect.isroutine(inner) or inspect.isclass(inner) or isinstance(kept, property):
        return said_in_doc(getattr(kept, "__doc__", None) or getattr(inner, "__doc__", None), last)
    return None


def said_in_code(value: Any) -> tuple[str, str] | None:
    tree = parsed(inspect.unwrap(value) if not inspect.isclass(value) else value)
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return None
    for decorator in tree.decorator_list:
        text = ast.unparse(decorator)
        if _DECORATOR.search(text.split("(")[0]) and not _NOT_THE_NAME.search(text.split("(")[0]):
            doc = said_in_doc(getattr(value, "__doc__", None), value.__name__)
            return "decorator", doc[1] if doc else squeeze(text)
    if _HELPER.search(tree.name):
        return None
    body = tree.body
    if isinstance(tree, ast.ClassDef):
        makers = ("__init__", "__new__")
        body = [
            line
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name in makers
            for line in node.body
        ]
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            text = ast.unparse(statement.value)
            if _WARNS.search(text.split("(")[0]) and _OLD.search(text):
                message = " ".join(
                    node.value
                    for node in ast.walk(statement)
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)
                )
                if not _ABOUT_PARAMETER.search(message):
                    return "warning when called", squeeze(message)
    return None


def said_in_doc(doc: Any, name: str) -> tuple[str, str] | None:
    if not isinstance(doc, str):
        return None
    text = inspect.cleandoc(doc)
    for found in _DIRECTIVE.finditer(text):
        message = squeeze(found.group(1))
        subject = None if _TELLS_INSTEAD.match(message) else _SUBJECT.search(message[:80])
        if subject and subject.group(1) != name:
            continue  # the note is about a parameter or another object
        if not _ABOUT_PARAMETER.search(message.split(". ")[0]):
            return "documented", message
    first = text.strip().split("\n\n")[0]
    if _FIRST_LINE.match(first) and not _ABOUT_PARAMETER.search(first):
        return "documented", squeeze(first)
    return None


def squeeze(text: str) -> str:
    return " ".join(text.split())[:240]


if __name__ == "__main__":
    main()
