"""What a package's files say about its objects, read with griffe; nothing of the package is run.

Re-exports are followed, also to names that only a compiled module defines: such a name has a row without documentation,
which `newdocs` and `runtime` fill.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parallelmind.errors import DataError, SettingsError
from parallelmind.retrieval.corpus.inspection.description import shortest
from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus.wildcards import Wildcards, modules

_DEEPEST_ALIAS = 50
_DEEPEST_RECURSION = 3000  # griffe visits syntax trees by recursion; more would overflow the stack of the process
_BUILTINS = ("builtins.", "__builtin__.")
_NOT_IMPORTED = frozenset({"TYPE_CHECKING", "__name__ == '__main__'"})
_TYPES = {"type alias": "attribute"}
_DEEPEST_TREE = 400


def analyse(folder: Path, import_name: str, beside: Sequence[str] = ()) -> StaticPackage:
    """Read the package or module `import_name` below `folder`, knowing what those `beside` it have.

    Files nested too deeply to be read are deleted, and named in `StaticPackage.unread`.

    Raises:
        SettingsError: griffe is not installed.
        DataError: griffe cannot read the package.
    """
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEEPEST_RECURSION))
    try:
        try:
            return StaticPackage(_load(folder, import_name, beside), [], folder)
        except (RecursionError, MemoryError):
            unread = delete_deep_files(folder, import_name)
            return StaticPackage(_load(folder, import_name, beside), unread, folder)
    except (ImportError, LookupError, ValueError, RecursionError, MemoryError, AttributeError) as error:
        raise DataError(f"{import_name}: its files cannot be read ({type(error).__name__}: {error}).") from error


def _load(folder: Path, import_name: str, beside: Sequence[str]) -> Any:
    try:
        import griffe
    except ImportError:
        raise SettingsError("reading packages needs griffe: pip install 'parallelmind[rag]'.") from None
    logging.getLogger("griffe").setLevel(logging.CRITICAL)
    imports: dict[str, list[str]] = defaultdict(list)

    class WildcardImports(griffe.Extension):
        def on_module_members(self, *, mod: Any, **kwargs: Any) -> None:
            imports[mod.path] += [m.target_path for m in mod.members.values() if m.is_alias and m.wildcard]

    extensions = griffe.load_extensions(WildcardImports)
    loader = griffe.GriffeLoader(extensions=extensions, search_paths=[str(folder)], allow_inspection=False)
    try:
        for other in beside:  # attrs passes on what attr has
            with contextlib.suppress(griffe.GriffeError, ImportError):
                loader.load(other, try_relative_path=False)
        root = loader.load(import_name, try_relative_path=False)
        loader.resolve_aliases(implicit=True, external=False)
    except griffe.GriffeError as error:
        raise ValueError(str(error)) from error
    _add_overloads(root)
    Wildcards(root, imports, griffe).complete()
    return root


class StaticPackage:
    """The objects of one package, by the path that defines them."""

    def __init__(self, root: Any, unread: list[str], folder: Path) -> None:
        self._root, self._folder = root, folder
        self.unread = unread
        self.objects: dict[str, PackageObject] = {}
        self._nodes: dict[str, Any] = {}
        self._module_aliases: dict[str, str] = {}
        for module in modules(root):
            if is_public(module.path):
                self._add_module(module)
        self._add_class_members()
        self._add_members_of_aliased_modules()

    def resolve(self, name: str) -> str:
        """The path that defines the object a dotted name reaches, as far as the files tell; else the name."""
        node, path = self._follow(name)
        return path if node is None else str(node.path)

    def _add_module(self, module: Any) -> None:
        self._add(module, module.path)
        exported = {name for name in module.exports or () if isinstance(name, str)}
        skipped = lines_not_imported(module)
        for name, member in module.members.items():
            if not is_public(name) or "*" in name or "/" in name:
                continue
            if (member.alias_lineno if member.is_alias else member.lineno) in skipped:
                continue
            if not member.is_alias:
                if not member.is_module:
                    self._add(member, member.path)
            elif name in exported or self._passes_on(module, member):
                self._add_alias(member, f"{module.path}.{name}")

    def _passes_on(self, module: Any, alias: Any) -> bool:
        """Whether a name that is not in `__all__` is imported to pass it on, and not only for the module's own use."""
        if not alias.wildcard_imported:
            return bool(module.is_init_module)
        if module.exports is not None and not module.is_init_module:
            return False
        source, rest = self._find(alias.target_path)
        # A stub passes on what it defines; what it imports, only if its `__all__` says so.
        return bool(
            rest or not (source.is_alias and _is_stub(source.parent)) or source.name in (source.parent.exports or ())
        )

    def _add_alias(self, alias: Any, name: str) -> None:
        node, path = self._follow(alias.target_path)
        if node is self._root:  # import numpy as np, in numpy
            return
        if node is not None:
            self._add(node, name)
            if node.is_module and not name.startswith(f"{node.path}."):
                self._module_aliases[name] = node.path
        elif path.startswith(_BUILTINS):
            self._add_unseen(name, name, doc=f"Re-export of builtins.{path.rpartition('.')[2]}.")
        elif path.startswith(f"{self._root.path}."):
            self._add_unseen(path, name)

    def _add(self, node: Any, name: str) -> None:
        path = str(node.path)
        if path not in self.objects:
            self._nodes[path] = node
            code = _code(node)
            self.objects[path] = PackageObject(
                path=path,
                type=_type(node),
                doc=node.docstring.value if node.docstring else "",
                signature=_signature(node),
                members={member for member in node.members if is_public(member) and "/" not in member},
                code=code,
                place=self._place(node) if code else "",
            )
        self.objects[path].names.add(name)

    def _place(self, node: Any) -> str:
        try:
            file = Path(node.filepath).relative_to(self._folder).as_posix()
        except ValueError:
            return ""
        return f"{file}:{_first_line(node)}-{node.endlineno}"

    def _add_unseen(self, path: str, name: str, doc: str = "") -> None:
        found = self.objects.setdefault(path, PackageObject(path=path, type="attribute", doc=doc))
        found.names.update({path, name} if is_public(path) else {name})

    def _add_members_of_aliased_modules(self) -> None:
        """numpy.char is numpy.core.defchararray, and so is what they hold."""
        below: dict[str, list[tuple[str, PackageObject]]] = defaultdict(list)
        modules = set(self._module_aliases.values())
        for item in self.objects.values():
            for name in item.names:
                parent = name.rpartition(".")[0]
                while parent and parent not in modules:
                    parent = parent.rpartition(".")[0]
                if parent:
                    below[parent].append((name.removeprefix(parent), item))
        for alias, path in self._module_aliases.items():
            for rest, item in below[path]:
                item.names.add(alias + rest)

    def _add_class_members(self) -> None:
        """Give the members of classes the names of all classes that have or inherit them."""
        waiting = [path for path, node in self._nodes.items() if node.is_class]
        seen = set(waiting)
        while waiting:
            path = waiting.pop()
            of_class = self.objects[path]
            for name, member in self._all_members(self._nodes[path]):
                of_class.members.add(name)
                for class_name in shortest(of_class.names):
                    self._add(member, f"{class_name}.{name}")
                if not self.objects[member.path].doc:
                    self.objects[member.path].doc = self._inherited_doc(self._nodes[path], name)
                if member.is_class and member.path not in seen:
                    seen.add(member.path)
                    waiting.append(member.path)

    def _all_members(self, node: Any) -> Iterator[tuple[str, Any]]:
        found: dict[str, Any] = {}
        for owner in (node, *_ancestors(node)):
            for name, member in owner.members.items():
                if is_public(name) and "/" not in name:
                    found.setdefault(name, member)
        for name, member in found.items():
            target = self._follow(member.target_path)[0] if member.is_alias else member
            if target is not None and not target.is_module:
                yield name, target

    def _inherited_doc(self, class_node: Any, name: str) -> str:
        for owner in _ancestors(class_node):
            member = owner.members.get(name)
            if member is not None and not member.is_alias and member.docstring:
                return str(member.docstring.value)
        return ""

    def _follow(self, path: str) -> tuple[Any, str]:
        """The object at the end of a chain of re-exports; (None, last path) if the chain leaves the files."""
        for _ in range(_DEEPEST_ALIAS):
            node, rest = self._find(path)
            if node is None:
                return None, path
            if not node.is_alias:
                return (node, path) if not rest else (None, ".".join([str(node.path), *rest]))
            path = ".".join([node.target_path, *rest])
        return None, path

    def _find(self, path: str) -> tuple[Any, list[str]]:
        """The deepest object on the way to `path` (the first alias, at most), and the components below it."""
        first, *parts = path.split(".")
        if first != self._root.path.split(".", 1)[0]:
            return None, parts
        node = self._root.package if hasattr(self._root, "package") else self._root
        for place, part in enumerate(parts):
            child = node.members.get(part)
            if child is None:
                return node, parts[place:]
            node = child
            if node.is_alias:
                return node, parts[place + 1 :]
        return node, []


def _add_overloads(node: Any) -> None:
    """Stubs may consist of overloads alone, which griffe keeps apart from the members."""
    for name, overloads in getattr(node, "overloads", {}).items():
        if overloads and name not in node.members:
            node.set_member(name, overloads[0])
    for member in list(node.members.values()):
        if not member.is_alias and (member.is_module or member.is_class):
            _add_overloads(member)


def lines_not_imported(module: Any) -> set[int]:
    """The lines of a module that no import runs: those for type checkers, and those for running it as a program."""
    path = module.filepath
    if not isinstance(path, Path) or path.suffix != ".py":
        return set()
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    blocks = [
        node for node in body if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] in _NOT_IMPORTED
    ]
    return {
        line
        for block in blocks
        for statement in block.body
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def _is_stub(module: Any) -> bool:
    return str(module.filepath).endswith(".pyi")


def _ancestors(node: Any) -> list[Any]:
    if not node.is_class:
        return []
    try:
        return list(node.mro())
    except (ValueError, RecursionError):
        return []


def _type(node: Any) -> str:
    kind = str(node.kind.value)
    if kind == "attribute":
        return "property" if "property" in node.labels else "attribute"
    if kind == "function" and node.parent is not None and node.parent.is_class:
        return "method"
    return _TYPES.get(kind, kind)


def _signature(node: Any) -> str:
    if node.is_function:
        return str(node.signature(name="\0")).removeprefix("\0")
    if node.is_class:
        for owner in (node, *_ancestors(node)):
            for name in ("__init__", "__new__"):
                method = owner.members.get(name)
                if method is not None and not method.is_alias and method.is_function:
                    return str(method.signature(name="\0", return_type=False)).removeprefix("\0")
    return ""


def _code(node: Any) -> str:
    if node.is_module or node.filepath is None or str(node.filepath).endswith(".pyi") or not node.lineno:
        return ""
    lines = node.lines
    if node.is_function or node.is_class:
        module_lines = node.lines_collection[node.filepath]
        lines = module_lines[_first_line(node) - 1 : node.endlineno]
    return "\n".join(lines)


def _first_line(node: Any) -> int:
    return min([int(node.lineno), *(int(decorator.lineno) for decorator in getattr(node, "decorators", ()))])


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
