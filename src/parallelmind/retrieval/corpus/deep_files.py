"""Files that are nested so deeply that reading them by recursion fails."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

_DEEPEST_TREE = 400


def delete_deep_files(folder: Path, import_name: str) -> list[str]:
    """Delete the Python files of a package whose syntax trees are too deep; returns their names."""
    deleted = []
    for path in sorted((folder / import_name.replace(".", "/")).rglob("*.py*")):
        if path.suffix in (".py", ".pyi") and _is_deep(path):
            path.unlink()
            deleted.append(str(path.relative_to(folder)))
    return deleted


def _is_deep(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            level: list[ast.AST] = [ast.parse(path.read_bytes())]
    except (RecursionError, MemoryError):
        return True
    except (SyntaxError, ValueError):  # griffe leaves these out by itself
        return False
    depth = 0
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth > _DEEPEST_TREE
