"""What the files say about the end of an object: a decorator, a warning whenever it is called, or its documentation.

What concerns only a parameter is not meant, nor a warning that depends on something.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Iterator

from parallelmind.retrieval.corpus.objects import PackageObject
from parallelmind.retrieval.corpus.sandbox.running import printable

_MOST = 1000
_DIRECTIVE = re.compile(
    r"^\.\. (?:deprecated|versionremoved):: *(.*(?:\n(?:[ \t]+\S.*|[ \t]*(?=\n[ \t]+\S)))*)", re.M | re.I
)
_SENTENCE = re.compile(
    r"^[*\[(:`_]{0,3}(deprecated\b(?!::)(?=\W{0,3}\s*"
    r"(?:[:.,(;\u2013-]|since|in\b|as\s+of|from|use\b|function|method|class|alias|and\b|\Z)).*"
    r"(?:\n(?![ \t]*\n).+)*)",
    re.M | re.I,
)
_OF_USE = re.compile(
    r"^(?:\*\w+\*|[^.]*\b(?:pass|passing|passed|argument|arguments|parameter|parameters|keyword)\b)", re.I
)
_SUBJECT = re.compile(r"(?::[\w:]+:)?`{1,2}~?(?:\w+\.)*(\w+)(?:\(\))?`{1,2}(?! instead)")
_OF_PARAMETERS = re.compile(r"kwarg|keyword|argument|param|posit|(?:^|_)args?(?:_|$)", re.I)
_SAYS_SO = re.compile(r"_?(?:warn_?)?deprecat(?:e|ed|ion)?(?:_?warn(?:ing)?)?\Z", re.I)
_CATEGORY = re.compile(r"Deprecat|FutureWarning|RemovedIn|MovedIn")


def deprecation_of(item: PackageObject) -> str:
    """In the package's own words, "" if it says nothing."""
    own = {name.rpartition(".")[2] for name in (item.path, *item.names)}
    said = item.deprecated or _in_code(item.code) or in_documentation(item.doc, own)
    return printable(" ".join(said.split()))[:_MOST]


def in_documentation(doc: str, own: Collection[str] = ()) -> str:
    """The directive or the sentence of a docstring by which an object is deprecated.

    Args:
        own: the object's last names: a directive that begins with another quoted name speaks of that.
    """
    if "deprecated" not in doc.lower() and "versionremoved" not in doc.lower():
        return ""
    if found := _DIRECTIVE.search(doc):
        version, text = [*found.group(1).split(maxsplit=1), "", ""][:2]
        is_removal = "versionremoved" in found.group(0).partition("::")[0].lower()
        # What was removed is named anywhere in it; of a deprecation what comes later is what to use.
        subject = _SUBJECT.search(text) if is_removal else _SUBJECT.match(text)
        if _OF_USE.match(text) or (subject and own and subject.group(1) not in own):
            return ""
        return f"Deprecated since {version}: {text}".removesuffix(": ")
    if found := _SENTENCE.search(doc):
        return found.group(1).strip()
    return ""


def _in_code(code: str) -> str:
    if not re.search(r"deprecat|FutureWarning|RemovedIn|MovedIn", code, re.I):
        return ""
    try:
        node = ast.parse(textwrap.dedent(code)).body[0]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        return ""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return ""
    return next(_decorated(node), "") or next(_warned(node), "")


def _decorated(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = ast.unparse(called).rpartition(".")[2]
        if "deprecat" in name.lower() and not _OF_PARAMETERS.search(name):
            yield _said(decorator) or "deprecated"


def _warned(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[str]:
    body = node.body
    if isinstance(node, ast.ClassDef):
        makers = [one for one in body if isinstance(one, ast.FunctionDef) and one.name in ("__init__", "__new__")]
        body = [statement for one in makers for statement in one.body]
    for statement in body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func).rpartition(".")[2]
        given = " ".join(ast.unparse(one) for one in [*call.args[1:], *(word.value for word in call.keywords)])
        is_warning = name == "warn" and _CATEGORY.search(given)
        if is_warning or _SAYS_SO.match(name):
            yield _said(call) or _assigned(call, node) or "deprecated"


def _said(call: ast.AST) -> str:
    """The texts among the arguments, where one of them is more than a word."""
    if not isinstance(call, ast.Call):
        return ""
    texts = [(word.arg or "", _text(word.value)) for word in [ast.keyword(None, one) for one in call.args]]
    texts += [(word.arg or "", _text(word.value)) for word in call.keywords]
    return "; ".join(f"{name}: {text}" if name in _NAMED else text for name, text in texts if text)


def _assigned(call: ast.Call, node: ast.AST) -> str:
    """The text of a variable that is the first argument, where it is set before."""
    if not call.args or not isinstance(call.args[0], ast.Name):
        return ""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == call.args[0].id:
            return _text(statement.value)
    return ""


_NAMED = ("alternative", "removal", "since", "version", "obj_type", "name")


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right) if isinstance(node.op, ast.Add) else _text(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # "…".format(…)
        return _text(node.func.value)
    return ""
