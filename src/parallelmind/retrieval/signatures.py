"""What a signature says that is written as text, such as `(a, /, b=1, *, c, **rest) -> box.Crate`."""

from __future__ import annotations

import ast
import re

_MAX_LENGTH = 20_000
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
