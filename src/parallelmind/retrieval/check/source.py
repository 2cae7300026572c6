"""Code to check: parsed within limits, and places in it."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from dataclasses import dataclass

from parallelmind.errors import DataError, first_line

MAX_DEPTH = 150
_CHAINED = (ast.BinOp, ast.Attribute, ast.Call, ast.Subscript)
MAX_CHARACTERS = 10_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file."""

    path: str
    tree: ast.Module
    lines: list[str]

    def column(self, line: int, offset: int) -> int:
        """The column of a place, counted in characters from 1; `offset` is in bytes, as ast has it."""
        if not 0 < line <= len(self.lines):
            return 1
        return len(self.lines[line - 1].encode("utf-8", "replace")[:offset].decode("utf-8", "replace")) + 1


def decode_source(content: bytes, path: str) -> str:
    """The text of a file, in the encoding that it declares.

    Raises:
        DataError: it is not a text in that encoding.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise DataError(f"{path} is not a text that Python can read: {first_line(error)}; save it as UTF-8.") from None


def parse_source(text: str, path: str, *, max_characters: int = MAX_CHARACTERS) -> Source:
    """Parse a text.

    Raises:
        DataError: it is not code of Python, too long, or nested too deeply; names the line.
    """
    if len(text) > max_characters:
        raise DataError(
            f"{path} has {len(text):,} characters; at most {max_characters:,} are checked at once. Check it in parts."
        )
    text = text.removeprefix("\ufeff")
    too_deep = DataError(f"{path} is nested too deeply to be checked; take its longest expressions apart.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like
            tree = ast.parse(text)
    except SyntaxError as error:
        reason = error.msg.partition(" (<unknown>")[0]
        raise DataError(f"{path}: line {error.lineno or 1} is not code of Python: {reason}; correct it.") from None
    except (RecursionError, MemoryError):
        raise too_deep from None
    except (ValueError, UnicodeError) as error:  # null bytes, lone surrogates
        raise DataError(f"{path} is not code of Python: {first_line(error)}; take these characters out.") from None
    if _is_too_deep(tree):
        raise too_deep
    return Source(path, tree, text.splitlines())


def _is_too_deep(tree: ast.Module) -> bool:
    """Sums, chains of attributes and calls, and those of elif are as deep as they are long, and are no matter."""
    pending: list[tuple[ast.AST, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            return True
        follows = _next_in_chain(node)
        pending += [(child, depth if child is follows else depth + 1) for child in ast.iter_child_nodes(node)]
    return False


def _next_in_chain(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        return node.orelse[0]
    child = chained(node)
    return child if isinstance(child, _CHAINED) else None


def chained(node: ast.AST) -> ast.expr | None:
    """What an expression goes on from: `a.b` of `a.b.c`, `f` of `f(x)`, `a` of `a + b`; None of others."""
    if isinstance(node, ast.BinOp):
        return node.left
    if isinstance(node, ast.Call):
        return node.func
    return node.value if isinstance(node, ast.Attribute | ast.Subscript | ast.Await) else None
