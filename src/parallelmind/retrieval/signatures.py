"""The parameters of a signature that is written as text, such as `(a, /, b=1, *, c, **rest)`."""

from __future__ import annotations

import ast
import re

from parallelmind.retrieval.facts import Parameter

_MAX_LENGTH = 20_000
_OBJECT = re.compile(r"<[^<>]*>")


def parse_parameters(signature: str, *, of_method: bool = False) -> tuple[Parameter, ...] | None:
    """The parameters in order, of a method without `self` or `cls`; None if the text is not a signature of Python."""
    function = _parse(signature)
    if function is None:
        return None
    given = function.args
    positional = [(one, "positional only") for one in given.posonlyargs]
    positional += [(one, "positional or keyword") for one in given.args]
    without_default = len(positional) - len(given.defaults)
    found = [
        Parameter(one.arg, kind, place >= without_default)  # type: ignore[arg-type]
        for place, (one, kind) in enumerate(positional)
    ]
    if of_method and found and found[0].name in ("self", "cls"):
        del found[0]
    if given.vararg:
        found.append(Parameter(given.vararg.arg, "any positional"))
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append(Parameter(one.arg, "keyword only", default is not None))
    if given.kwarg:
        found.append(Parameter(given.kwarg.arg, "any keyword"))
    return tuple(found)


def return_annotation(signature: str) -> str:
    """What stands behind the arrow; "" if nothing does, or the text is not a signature of Python."""
    function = _parse(signature)
    if function is None or function.returns is None:
        return ""
    returns = function.returns
    return (
        returns.value if isinstance(returns, ast.Constant) and isinstance(returns.value, str) else ast.unparse(returns)
    )


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
