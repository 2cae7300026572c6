"""The objects of a package that have a text or a signature, and the public names that reach them."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import sys
import types
from typing import Any, Iterable, Iterator, Sequence  # noqa: UP035 - as Python 3.7 has them

from .objects import (
    PLAIN,
    PROPERTIES,
    accessed,
    clean_doc,
    deprecation,
    home_module,
    home_of,
    in_package,
    inherited_doc,
    is_a,
    is_below,
    is_public,
    is_routine,
    own_doc,
)

MAX_SIGNATURE = 20000
MAX_DEFAULT = 200
NAMES_FOR_MEMBERS = 3
DEEPEST_NAME = 9  # of classes that have themselves as members
# Members that come from these say nothing about the package.
SILENT_OWNERS = {"builtins", "abc", "enum", "typing", "collections", "collections.abc", "_collections_abc"}
STANDARD = os.path.dirname(os.__file__) + os.sep
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Verbatim:
    """Shown as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Description:
    """The objects reachable from the public modules of a package, one entry per object."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.entries: dict[Any, dict[str, Any]] = {}
        self.alive: list[Any] = []  # ids stay unique while the objects live
        self.class_names: dict[int, tuple[type, set[str]]] = {}
        self.instances: dict[int, tuple[Any, set[str]]] = {}
        self.passed_on: dict[str, set[str]] = {}

    def numbers(self) -> dict[Any, int]:
        """The number of each entry, by the id of its object, or by its name if it is a constant."""
        return {key: number for number, key in enumerate(self.entries)}

    def run(self) -> None:
        modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, types.ModuleType)]
        for name, module in sorted(modules, key=lambda pair: pair[0]):
            if is_below(name, self.package) and is_public(name):
                self.add_module(name, module)
        for name, module in modules:
            if is_below(name, self.package) and is_public(name):
                self.add_unreached(name, module)
        for value, names in self.instances.values():
            self.add_members(type(value), shortest(names))
        done: set[tuple[int, str]] = set()
        while True:  # members may be classes, and give classes more names
            waiting = [(key, name) for key, (_, names) in self.class_names.items() for name in shortest(names)]
            waiting = [pair for pair in waiting if pair not in done]
            if not waiting:
                break
            for key in {key for key, _ in waiting}:
                new = [name for other, name in waiting if other == key and name.count(".") < DEEPEST_NAME]
                self.add_members(self.class_names[key][0], sorted(new))
            done.update(waiting)

    def add_late(self, value: Any, name: str) -> None:
        """An object that only asking for its name has shown; and its members, if it is a class."""
        self.add_object(value, name)
        if is_a(value, type):
            self.add_members(value, [name])

    def add_module(self, name: str, module: types.ModuleType) -> None:
        members = set()
        for member, value, exported in public_members(module):
            if is_a(value, types.ModuleType):
                if exported or member in self.re_exports(module):
                    self.add_foreign(name + "." + member, value)
                if value.__name__.startswith(self.package + "."):
                    members.add(member)
                    alias = name + "." + member
                    if value.__name__ not in (alias, self.package):
                        self.add(value, alias, "module", value.__name__)
                        if hasattr(module, "__path__") and not alias.startswith(value.__name__ + "."):
                            self.add_aliased(alias, value)
                continue
            try:
                if self.is_own(module, member, value, exported):
                    members.add(member)
                    self.add_object(value, name + "." + member)
            except Exception:  # of a proxy that stands for nothing yet
                self.add_constant(name + "." + member)
        self.add(module, name, "module", name, sorted(members))

    def add_unreached(self, name: str, module: types.ModuleType) -> None:
        """Objects of private modules that no module passes on: the module that uses them is where they can be had."""
        for member, value in sorted(vars(module).items()):
            full = name + "." + member
            if is_public(full) and not is_a(value, types.ModuleType) and id(value) not in self.entries:
                try:
                    if is_below(home_module(value), self.package):
                        self.add_object(value, full)
                except Exception:  # of a proxy that stands for nothing yet
                    continue

    def add_aliased(self, alias: str, module: types.ModuleType) -> None:
        """numpy.char is numpy.core.defchararray, and so is what they hold."""
        for member, value, exported in public_members(module):
            if not is_a(value, types.ModuleType) and self.is_own(module, member, value, exported):
                self.add_object(value, alias + "." + member)

    def add_foreign(self, alias: str, module: types.ModuleType) -> None:
        """A module of another package that this one passes on: fastapi.status is starlette.status."""
        if is_below(module.__name__, self.package) or is_standard(module.__name__):
            return
        self.add(module, alias, "module", module.__name__)
        for member, value, exported in public_members(module):
            if not is_a(value, types.ModuleType) and (exported or self.is_own(module, member, value, exported)):
                self.add_object(value, alias + "." + member)

    def is_own(self, module: types.ModuleType, member: str, value: Any, exported: bool) -> bool:
        """Whether a module has a name to pass it on, and not only for its own use."""
        home = home_module(value)
        if not home:
            is_constant = is_a(value, PLAIN) and not hasattr(module, "__all__")
            return exported or hasattr(module, "__path__") or is_constant
        if home == module.__name__ or exported or member in self.re_exports(module):
            return True
        if not hasattr(module, "__path__"):
            return False
        return is_below(home, self.package) or (home == "builtins" and is_a(value, type)) or not is_standard(home)

    def re_exports(self, module: types.ModuleType) -> set[str]:
        """The names that a module imports to pass them on: `import X as X`, as type checkers understand it."""
        if module.__name__ not in self.passed_on:
            self.passed_on[module.__name__] = set(re_exported(tree_of(str(getattr(module, "__file__", "")))))
        return self.passed_on[module.__name__]

    def add_object(self, value: Any, name: str) -> None:
        if is_a(value, type):
            self.add(value, name, "class", home_of(value))
            self.class_names.setdefault(id(value), (value, set()))[1].add(name)
        elif type(value).__name__ == "ufunc":
            self.add(value, name, "ufunc", home_of(value))
        elif is_routine(value) or (callable(value) and isinstance(getattr(value, "__name__", None), str)):
            self.add(value, name, "function", home_of(value))
        elif is_a(value, PLAIN) or not (own_doc(value) or in_package(type(value), self.package)):
            self.add_constant(name)
        else:  # an instance of the package's own classes has their documentation: numpy.r_
            self.add(value, name, "object", "")
            if in_package(type(value), self.package):  # scipy.stats.norm.pdf
                self.instances.setdefault(id(value), (value, set()))[1].add(name)

    def add_constant(self, name: str) -> None:
        self.entries[name] = {"path": name, "names": {name}, "type": "attribute", "doc": "", "signature": ""}

    def add_members(self, cls: type, names: Sequence[str]) -> None:
        found = set()
        for member in dir(cls):
            if member.startswith("_"):
                continue
            owners = [base for base in inspect.getmro(cls) if member in vars(base)]
            if not owners or getattr(owners[0], "__module__", "") in SILENT_OWNERS:
                continue
            found.add(member)
            raw = vars(owners[0])[member]
            path = home_of(owners[0]) + "." + member if in_package(owners[0], self.package) else ""
            if not is_a(raw, type) and is_a(accessed(cls, member), type):  # pandas.Series.str
                raw = accessed(cls, member)
            for name in names:
                try:
                    self.add_member(raw, name + "." + member, path, owners)
                except Exception:
                    self.add_constant(name + "." + member)
        if id(cls) in self.entries:
            self.entries[id(cls)]["members"] = sorted(found)

    def add_member(self, raw: Any, name: str, path: str, owners: Sequence[type]) -> None:
        value = raw.__func__ if is_a(raw, (classmethod, staticmethod)) else raw
        member = name.rpartition(".")[2]
        if is_a(value, type):
            self.add_object(value, name)
        elif id(value) in self.entries:
            self.entries[id(value)]["names"].add(name)
        elif is_a(value, PROPERTIES) or type(value).__name__ in ("cached_property", "CachedAttribute"):
            self.add(value, name, "property", path, doc=inherited_doc(value, member, owners))
        elif is_routine(value) or (callable(value) and hasattr(value, "__name__")):
            bound = not is_a(raw, staticmethod)
            self.add(value, name, "method", path, bound=bound, doc=inherited_doc(value, member, owners))
        elif is_a(value, PLAIN) or not own_doc(value):
            if path == name:
                self.add_constant(name)
        else:
            self.add(value, name, "property", path)

    def add(
        self,
        value: Any,
        name: str,
        kind: str,
        path: str,
        members: Sequence[str] = (),
        bound: bool = False,
        doc: str | None = None,
    ) -> None:
        entry = self.entries.get(id(value))
        if entry is None:
            self.alive.append(value)
            if doc is None:
                doc = clean_doc(getattr(value, "__doc__", None))
            shown, parameters = signature(value, kind, bound)
            entry = {"path": path, "names": set(), "type": kind, "doc": doc, "signature": shown}
            entry.update(parameters=parameters, deprecated=deprecation(value))
            self.entries[id(value)] = entry
        entry["names"].add(name)
        if members:
            entry["members"] = list(members)

    def rows(self) -> Iterator[dict[str, Any]]:
        for number, entry in enumerate(self.entries.values()):
            names = sorted(entry["names"])
            path = entry["path"]
            if not is_below(path, self.package):
                path = min(names, key=lambda name: (name.count("."), name))
            yield dict(entry, names=names, path=path, home=entry["path"], number=number)


def shortest(names: Iterable[str]) -> list[str]:
    """The names of a class whose members get names by them; by the others they are found, too, step by step."""
    return sorted(names, key=lambda name: (name.count("."), len(name), name))[:NAMES_FOR_MEMBERS]


def public_members(module: types.ModuleType) -> Iterator[tuple[str, Any, bool]]:
    """(name, value, whether `__all__` has it) of what a module offers; lazy attributes too."""
    exported = getattr(module, "__all__", None)
    exported = {name for name in exported if isinstance(name, str)} if isinstance(exported, (list, tuple)) else set()
    names = set(exported)
    if hasattr(module, "__path__") or not exported:
        names.update(name for name in dir(module) if isinstance(name, str))
    for name in sorted(names):
        if name.startswith("_"):
            continue
        try:
            value = getattr(module, name)
        except BaseException:  # also SystemExit, of a lazy module that lacks what it needs
            continue
        yield name, value, name in exported


@functools.lru_cache(maxsize=None)  # noqa: UP033 - as Python 3.7 has it
def tree_of(path: str) -> ast.Module | None:
    """The syntax tree of a file of Python, if it can be read."""
    try:
        with open(path, "rb") as file:
            return ast.parse(file.read()) if path.endswith(".py") else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def re_exported(tree: ast.Module | None) -> Iterator[str]:
    waiting: list[ast.AST] = [] if tree is None else [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name == alias.asname)
        elif isinstance(node, (ast.Module, ast.If, ast.Try)):
            waiting += [*node.body, *getattr(node, "orelse", ())]


def is_standard(home: str) -> bool:
    """Whether a module belongs to Python itself."""
    path = str(getattr(sys.modules.get(home), "__file__", None) or "")
    return home in sys.builtin_module_names or (path.startswith(STANDARD) and "site-packages" not in path)


def signature(value: Any, kind: str, bound: bool) -> tuple[str, list[list[Any]] | None]:
    """As text, "" if it is unknown or too long; and [name, kind, whether it can be left out] of each parameter."""
    if kind in ("module", "property", "object"):
        return "", None
    try:
        found = inspect.signature(value)
        parameters = list(found.parameters.values())
        if kind == "class" and {one.kind for one in parameters} == {2, 4} and is_a(value.__init__, types.FunctionType):
            # Its __new__ takes everything, and its __init__ says what.
            found = inspect.signature(value.__init__)
            parameters = list(found.parameters.values())[1:]
        if bound and parameters and parameters[0].kind in (0, 1):
            parameters = parameters[1:]
        listed = [[one.name, int(one.kind), one.default is not one.empty or one.kind in (2, 4)] for one in parameters]
    except BaseException:
        return "", None
    try:
        parameters = [
            one.replace(annotation=unquoted(one.annotation), default=short(one.default)) for one in parameters
        ]
        found = found.replace(parameters=parameters, return_annotation=unquoted(found.return_annotation))
        text = ADDRESS.sub("", str(found))
    except BaseException:  # of the __repr__ of a default, which may be anything
        return "", listed
    return text if len(text) <= MAX_SIGNATURE else "", listed


def short(default: Any) -> Any:
    return Verbatim("...") if default is not inspect.Parameter.empty and len(repr(default)) > MAX_DEFAULT else default


def unquoted(annotation: Any) -> Any:
    return Verbatim(annotation) if isinstance(annotation, str) else annotation
