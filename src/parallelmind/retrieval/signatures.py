"""What a signature says that is written as text, such as `(a, /, b=1, *, c, **rest) -> box.Crate`."""

from __future__ import annotations

import ast
import re

_MAX_LENGTH = 50_000
MAX_SIGNATURE = 1200
_PLAIN_LENGTH = 120
_LONGEST_DEFAULT, _LONGEST_TYPE = 80, 120
MORE = ", …)"
_OBJECT = re.compile(r"<[^<>]*>")


def return_annotation(signature: str) -> str:
    """What stands behind the arrow; "" if nothing does, or the text is not a signature of Python."""
    function = _parse(signature)
    if function is None or function.returns is None:
        return ""
    returns = function.returns
    return (
        returns.value if isinstance(returns, ast.Constant) and isinstance(returns.value, str) else ast.unparse(returns)
    )


def bounded_signature(text: str) -> str:
    """A signature that can be read at a glance.

    Long default values become `...`; of one that is too long, annotations are reduced to the types, then left out.
    """
    if len(text) <= _PLAIN_LENGTH:
        return text
    function = _parse(text)
    if function is None:
        return text if len(text) <= MAX_SIGNATURE else _cut(text)
    parts = [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    defaults = [one for one in (*function.args.defaults, *function.args.kw_defaults) if one is not None]
    if len(text) <= MAX_SIGNATURE and all(len(ast.unparse(one)) <= _LONGEST_DEFAULT for one in defaults):
        return text
    function.args.defaults = [_short(one) for one in function.args.defaults]
    function.args.kw_defaults = [one and _short(one) for one in function.args.kw_defaults]
    if len(found := _written(function)) <= MAX_SIGNATURE:
        return found
    for part in parts:
        part.annotation = part.annotation and _type_alone(part.annotation)
    function.returns = function.returns and _type_alone(function.returns)
    if len(found := _written(function)) <= MAX_SIGNATURE:
        return found
    found = _names_alone(function)
    return found if len(found) <= MAX_SIGNATURE else _cut(found)


def names_alone(text: str) -> str:
    """A signature without annotations; a text that is none stays as it is."""
    function = _parse(text)
    return text if function is None else _names_alone(function)


def _names_alone(function: ast.FunctionDef) -> str:
    for part in ast.walk(function.args):
        if isinstance(part, ast.arg):
            part.annotation = None
    function.returns = None
    return _written(function)


def _short(default: ast.expr) -> ast.expr:
    return default if len(ast.unparse(default)) <= _LONGEST_DEFAULT else ast.Constant(...)


def _type_alone(annotation: ast.expr) -> ast.expr | None:
    """`T` of `Annotated[T, …]`; None for a type that is long by itself."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).rpartition(".")[2] == "Annotated":
        inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        annotation = inside[0]
    return annotation if len(ast.unparse(annotation)) <= _LONGEST_TYPE else None


def _written(function: ast.FunctionDef) -> str:
    text = f"({ast.unparse(function.args)})"
    return f"{text} -> {ast.unparse(function.returns)}" if function.returns is not None else text


def _cut(text: str) -> str:
    """After a parameter, where that can be told."""
    kept = text[: MAX_SIGNATURE - len(MORE)]
    return (kept.rpartition(",")[0] or kept) + MORE


def _parse(signature: str) -> ast.FunctionDef | None:
    if not signature.startswith("(") or len(signature) > _MAX_LENGTH:
        return None
    text, changed = signature, 1
    while changed:  # <function <lambda> at 0x7f…> has one within another
        text, changed = _OBJECT.subn("...", text)
    try:
        [function] = ast.parse(f"def f{text}: ...").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return function if isinstance(function, ast.FunctionDef) else None
