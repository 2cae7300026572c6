"""What a `__getattr__` may answer for, as far as its code tells, and what its errors say."""

from __future__ import annotations

import ast
import inspect
import re
import types
from typing import Any, Iterable, Iterator  # noqa: UP035 - as Python 3.7 has them

from .description import tree_of
from .objects import home_module, is_a

UNUSED_NAMES = ("zq_nobody_uses_this", "ZqNobodyUsesThis", "zqx7")
WORD = re.compile(r"[^\W\d]\w*")
TAKES_APART = {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "partition", "rpartition", "split"}
GONE = re.compile(r"\b(?:removed|moved|renamed|no longer|deprecated|expired|use )", re.I)
LARGEST_SOURCE = 2**22


def finds_anything(finder: Any, package: str) -> bool:
    """Whether a way of finding modules finds one that nobody has."""
    try:
        return finder.find_spec(package + "." + UNUSED_NAMES[0], None, None) is not None
    except AttributeError:
        return False  # it is of the old kind, which Python no longer asks
    except Exception:
        return True


def hooks_of(cls: type, last: type) -> Iterator[Any]:
    """The functions that answer for names which are in no namespace, of the classes before `last`."""
    for base in type.mro(cls):
        if base is last or base is object:
            return
        for name in ("__getattr__", "__getattribute__"):
            hook = vars(base).get(name)
            if hook is not None and home_module(base) != "builtins":  # those of dict and its like are the usual way
                yield hook


def may_make_names(hook: Any) -> bool:
    """Whether instances may have names by it that nobody wrote.

    Not if its code only compares the name with texts, and refuses it. pydantic's models only find what they were given.
    """
    return getattr(hook, "__module__", "") != "pydantic.main" and not only_compares(hook)


def only_compares(hook: Any) -> bool:
    """Whether the name that a hook is asked for stands in its code in comparisons with texts and in errors alone."""
    code = code_of(hook)
    tree = tree_of(code.co_filename) if code is not None else None
    if code is None or tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name and len(node.args.args) == 2:
            first = min([node.lineno] + [one.lineno for one in node.decorator_list])
            if code.co_firstlineno in (first, node.lineno):
                asked = node.args.args[1].arg
                fine = {id(one) for part in ast.walk(node) if is_harmless(part) for one in ast.walk(part)}
                used = [one for one in ast.walk(node) if isinstance(one, ast.Name) and one.id == asked]
                return bool(used) and all(id(one) in fine for one in used)
    return False


def is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        parts = [part for one in node.comparators for part in ast.walk(one)]
        is_plain = isinstance(node.left, ast.Name)  # not a piece of the name
        return is_plain and not any(isinstance(part, (ast.Name, ast.Attribute, ast.Call)) for part in parts)
    return isinstance(node, ast.Raise)


def words_of(value: Any, hooks: Iterable[Any]) -> set[str]:
    """The words of the files that a namespace and its `__getattr__` are written in, and of the tables they use."""
    files = {str(getattr(value, "__file__", ""))}
    words: set[str] = set()
    for hook in hooks:
        function = inspect.unwrap(getattr(hook, "__func__", hook))
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        files.add(code.co_filename)
        used: list[Any] = [getattr(function, "__globals__", {}).get(name) for name in code.co_names]
        used += [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if has_content(cell)]
        for one in used:
            if is_a(one, (dict, list, tuple, set, frozenset)):
                words.update(filter(is_text, one))
            elif is_a(one, types.FunctionType):
                files.add(one.__code__.co_filename)
            elif is_a(one, types.ModuleType):
                words.update(filter(is_text, vars(one)))
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                words.update(WORD.findall(file.read(LARGEST_SOURCE)))
        except (OSError, ValueError):
            continue
    return words


def code_of(hook: Any) -> types.CodeType | None:
    found = getattr(inspect.unwrap(getattr(hook, "__func__", hook)), "__code__", None)
    return found if isinstance(found, types.CodeType) else None


def pieces_of(hook: Any) -> set[str]:
    """The parts of names that a `__getattr__` puts together or takes off, if it does: `DIRECTION_`.

    What it then answers for cannot be known by trying.
    """
    code = code_of(hook)
    if code is None or not TAKES_APART & set(code.co_names):
        return set()
    consts = [one for const in code.co_consts for one in (const if isinstance(const, tuple) else (const,))]
    texts = [one for one in consts if isinstance(one, str) and WORD.fullmatch(one)]
    return {one for one in texts if one.strip("_") and one.startswith("_") != one.endswith("_")}


def join(piece: str, word: str) -> list[str]:
    return [piece + word] if piece.endswith("_") else [word + piece]


def has_content(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where there is none
    except ValueError:
        return False
    return True


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that a name is gone, in words of its own: pydantic's import errors do."""
    is_plain = isinstance(error, (AttributeError, ImportError)) and not isinstance(error, ModuleNotFoundError)
    return is_plain and GONE.search(str(error)) is not None


def is_text(value: object) -> bool:
    return is_a(value, str)
