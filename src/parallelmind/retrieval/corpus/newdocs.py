"""Documentation that packages attach to compiled objects with `add_newdoc`, found in the syntax tree.

The shapes in use: add_newdoc("numpy.core.multiarray", "array", doc), ("…", "ndarray", ("shape", doc)), ("…", "ndarray",
[("shape", doc), …]), scipy's add_newdoc("airy", doc), and numpy's add_newdoc_for_scalar_type("int8", [], doc).
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

_MAX_FILE_BYTES = 8 * 2**20
_MAX_DOC = 2**20
_FUNCTIONS = frozenset({"add_newdoc", "add_docstring_to", "add_newdoc_for_scalar_type"})


def find_newdocs(folder: Path, import_name: str) -> dict[str, str]:
    """Docstrings by dotted name, from all files of the package below `folder`."""
    texts = _Texts(folder)
    found: dict[str, str] = {}
    package = folder / import_name.replace(".", "/")
    for path in sorted(package.rglob("*.py")):
        tree = _parse(path, b"add_newdoc")
        if tree is None:
            continue
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in _FUNCTIONS:
                for name, doc in _documented(node, module, import_name, texts):
                    found.setdefault(name, texts.filled(inspect.cleandoc(doc), module))
    return found


class _Texts:
    """Texts that expressions stand for: literals, their sums and replacements, and names of such."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._constants: dict[str, dict[str, ast.expr]] = {}
        self._imports: dict[str, dict[str, str]] = {}

    def value(self, node: ast.expr, module: str, depth: int = 0) -> str | None:
        """The text, or None if only running the code would tell."""
        if depth > 100:
            return None
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.Name):
            return self._named(node.id, module, depth + 1)
        if isinstance(node, ast.BinOp):
            left = self.value(node.left, module, depth + 1)
            if isinstance(node.op, ast.Mod):  # the template; running the package fills it in
                return left
            right = self.value(node.right, module, depth + 1)
            if not isinstance(node.op, ast.Add) or left is None or right is None or len(left + right) > _MAX_DOC:
                return None
            return left + right
        return self._called_on(node, module, depth) if isinstance(node, ast.Call) else None

    def filled(self, doc: str, module: str) -> str:
        """Without the placeholders ($PARAMS) that the texts of a dictionary in the module stand for, as in numpy's."""
        if "$" not in doc:
            return doc
        self._read(module)
        for value in self._constants[module].values():
            for key, text in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
                name, content = self.value(key, module) if key else None, self.value(text, module)
                if name and content is not None and len(doc) + doc.count(f"${name}") * len(content) <= _MAX_DOC:
                    doc = doc.replace(f"${name}", content)
        return doc

    def _called_on(self, node: ast.Call, module: str, depth: int) -> str | None:
        if _called(node) in ("dedent", "cleandoc", "strip") and node.args:
            text = self.value(node.args[0], module, depth + 1)
            return None if text is None else inspect.cleandoc(text)
        if not isinstance(node.func, ast.Attribute):
            return None
        text = self.value(node.func.value, module, depth + 1)
        if text is None or node.func.attr in ("format", "strip", "lstrip", "rstrip"):
            return text
        if node.func.attr == "replace" and len(node.args) == 2:
            old, new = (self.value(argument, module, depth + 1) for argument in node.args)
            if old and new is not None and len(text) + text.count(old) * len(new) <= _MAX_DOC:
                return text.replace(old, new)
            return text
        return None

    def _named(self, name: str, module: str, depth: int) -> str | None:
        if depth > 20:
            return None
        self._read(module)
        if name in self._constants[module]:
            return self.value(self._constants[module][name], module, depth)
        source = self._imports[module].get(name)
        return self._named(name, source, depth + 1) if source and source != module else None

    def _read(self, module: str) -> None:
        if module in self._constants:
            return
        constants = self._constants[module] = {}
        imports = self._imports[module] = {}
        tree = _parse(self._folder / (module.replace(".", "/") + ".py"))
        for node in tree.body if tree is not None else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                constants.setdefault(node.targets[0].id, node.value)
            elif isinstance(node, ast.ImportFrom):
                package = module.split(".")[: -node.level] if node.level else []
                source = ".".join([*package, *(node.module or "").split(".")]).strip(".")
                imports.update({alias.name: source for alias in node.names if alias.asname is None})


def _documented(call: ast.Call, module: str, import_name: str, texts: _Texts) -> Iterator[tuple[str, str]]:
    arguments = call.args
    if len(arguments) == 2:  # the file's own package
        name, doc = (texts.value(argument, module) for argument in arguments)
        if name and doc:
            yield f"{module.rpartition('.')[0]}.{name}", doc
        return
    if len(arguments) < 3:
        return
    first = texts.value(arguments[0], module)
    if not first:
        return
    if _called(call) == "add_newdoc_for_scalar_type":
        doc = texts.value(arguments[2], module)
        if doc:
            yield f"{import_name}.{first}", doc
        return
    second = texts.value(arguments[1], module)
    if not second or not first.startswith(import_name):
        return
    path = f"{first}.{second}"
    doc = texts.value(arguments[2], module)
    if doc:
        yield path, doc
        return
    for pair in _pairs(arguments[2]):
        attribute, doc = (texts.value(element, module) for element in pair.elts)
        if attribute and doc:
            yield f"{path}.{attribute}", doc


def _pairs(node: ast.expr) -> list[ast.Tuple]:
    candidates = [node] if isinstance(node, ast.Tuple) else node.elts if isinstance(node, ast.List) else []
    return [pair for pair in candidates if isinstance(pair, ast.Tuple) and len(pair.elts) == 2]


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _parse(path: Path, needle: bytes = b"") -> ast.Module | None:
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_FILE_BYTES:
            return None
        content = path.read_bytes()
        if needle not in content:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the package's texts
            return ast.parse(content)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
