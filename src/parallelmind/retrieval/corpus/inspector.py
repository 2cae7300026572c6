"""Runs in a process of its own, with the interpreter and the folders it is given: imports a package and describes it.

Nothing of parallelmind is imported, and the code keeps to Python 3.7, so that an interpreter on which an old version of
a package runs can describe it. The package may do what it likes in here: who reads the output must trust none of it.
Standard output has one JSON object a line: {"importing": name} before each module, then the description.

    python -I -S inspector.py REQUEST     a JSON object; `runtime.inspect_package` writes it
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import re
import signal
import sys
import threading
import types
import warnings
from typing import Any, Iterator, NoReturn, Sequence, TextIO  # noqa: UP035 - as Python 3.7 has them

MAX_SIGNATURE = 2000
DEEPEST_NAME = 9  # of classes that have themselves as members
SECONDS_PER_MODULE = 60
SKIPPED_MODULES = {"tests", "test", "conftest", "_tests", "setup", "__main__"}
# Members that come from these say nothing about the package.
SILENT_OWNERS = {"builtins", "abc", "enum", "typing", "collections", "collections.abc", "_collections_abc"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
PROPERTIES = (property, types.GetSetDescriptorType, types.MemberDescriptorType)
PLAIN = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset, type(None), type(Ellipsis))


class Verbatim:
    """Shown as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class TooSlow(BaseException):
    """A module takes too long to import; no ordinary handler in the package should catch it."""


def keep_streams() -> TextIO:
    """The standard output, for us alone; the package's own leads nowhere, and its standard input is empty."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    end_with_parent(os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return results


def end_with_parent(pipe: int) -> None:
    """Exit when the other end of the pipe is closed."""

    def wait() -> None:
        while os.read(pipe, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


class Importer:
    """Imports a package and its public modules, each with a time limit, and notes what failed."""

    def __init__(self, request: dict[str, Any], results: TextIO) -> None:
        self.package = request["package"]
        self.skipped = set(request["skipped"])
        self.results = results
        self.errors: dict[str, str] = {}
        self.pid = os.getpid()

    def run(self) -> None:
        if self.package in sys.modules or self.package in sys.builtin_module_names:  # such as typing, of old
            self.errors[self.package] = "ImportError: Python has a module of its own of this name"
            return
        root = self.load(self.package)
        if root is not None:
            self.load_below(root)

    def load_below(self, module: types.ModuleType) -> None:
        try:
            found = [name for _, name, _ in pkgutil.iter_modules(list(module.__path__))]
        except Exception:
            return
        for name in sorted(found):
            if name.startswith(("_", "test_")) or name in SKIPPED_MODULES:
                continue
            child = self.load(module.__name__ + "." + name)
            if child is not None and hasattr(child, "__path__"):
                self.load_below(child)

    def load(self, name: str) -> types.ModuleType | None:
        if name in self.skipped:
            self.errors[name] = "ended the process"
            return None
        self.results.write(json.dumps({"importing": name}) + "\n")
        self.results.flush()
        try:
            if hasattr(signal, "SIGALRM"):
                signal.signal(signal.SIGALRM, too_slow)
                signal.alarm(SECONDS_PER_MODULE)
            module = importlib.import_module(name)
            return module if isinstance(module, types.ModuleType) else None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.errors[name] = (type(error).__name__ + ": " + str(error))[:300]
            return None
        finally:
            if hasattr(signal, "SIGALRM"):
                signal.alarm(0)
            if os.getpid() != self.pid:  # the module forked: one of us is enough
                os._exit(0)


def too_slow(number: int, frame: types.FrameType | None) -> NoReturn:
    raise TooSlow(f"took more than {SECONDS_PER_MODULE} seconds")


class Description:
    """The objects reachable from the public modules of a package, one entry per object."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.entries: dict[Any, dict[str, Any]] = {}
        self.alive: list[Any] = []  # ids stay unique while the objects live
        self.class_names: dict[int, tuple[type, set[str]]] = {}
        self.instances: dict[int, tuple[Any, set[str]]] = {}

    def run(self) -> None:
        modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, types.ModuleType)]
        for name, module in sorted(modules, key=lambda pair: pair[0]):
            if (name == self.package or name.startswith(self.package + ".")) and is_public(name):
                self.add_module(name, module)
        for value, names in self.instances.values():
            self.add_members(type(value), sorted(names))
        done: set[tuple[int, str]] = set()
        while True:  # members may be classes, and give classes more names
            waiting = [(key, name) for key, (_, names) in self.class_names.items() for name in names]
            waiting = [pair for pair in waiting if pair not in done]
            if not waiting:
                break
            for key in {key for key, _ in waiting}:
                new = [name for other, name in waiting if other == key and name.count(".") < DEEPEST_NAME]
                self.add_members(self.class_names[key][0], sorted(new))
            done.update(waiting)

    def add_module(self, name: str, module: types.ModuleType) -> None:
        members = set()
        for member, value, exported in public_members(module):
            if isinstance(value, types.ModuleType):
                if value.__name__.startswith(self.package + "."):
                    members.add(member)
                    alias = name + "." + member
                    if value.__name__ not in (alias, self.package):
                        self.add(value, alias, "module", value.__name__)
                        if hasattr(module, "__path__") and not alias.startswith(value.__name__ + "."):
                            self.add_aliased(alias, value)
                continue
            if self.is_own(module, value, exported):
                members.add(member)
                self.add_object(value, name + "." + member)
        self.add(module, name, "module", name, sorted(members))

    def add_aliased(self, alias: str, module: types.ModuleType) -> None:
        """numpy.char is numpy.core.defchararray, and so is what they hold."""
        for member, value, exported in public_members(module):
            if not isinstance(value, types.ModuleType) and self.is_own(module, value, exported):
                self.add_object(value, alias + "." + member)

    def is_own(self, module: types.ModuleType, value: Any, exported: bool) -> bool:
        """Whether a module has a name to pass it on, and not only for its own use."""
        # Of old compiled modules only the last part of the name is there: numpy.random.RandomState says "mtrand".
        home = getattr(sys.modules.get(str(getattr(value, "__module__", None))), "__name__", None)
        if not isinstance(home, str):
            is_constant = isinstance(value, PLAIN) and not hasattr(module, "__all__")
            return exported or hasattr(module, "__path__") or is_constant
        if home == module.__name__ or exported:
            return True
        in_package = home == self.package or home.startswith(self.package + ".")
        return hasattr(module, "__path__") and (in_package or (home == "builtins" and isinstance(value, type)))

    def add_object(self, value: Any, name: str) -> None:
        if isinstance(value, type):
            self.add(value, name, "class", home_of(value))
            self.class_names.setdefault(id(value), (value, set()))[1].add(name)
        elif type(value).__name__ == "ufunc":
            self.add(value, name, "ufunc", home_of(value))
        elif inspect.isroutine(value) or (callable(value) and isinstance(getattr(value, "__name__", None), str)):
            self.add(value, name, "function", home_of(value))
        elif isinstance(value, PLAIN) or not (own_doc(value) or in_package(type(value), self.package)):
            self.entries[name] = {"path": name, "names": {name}, "type": "attribute", "doc": "", "signature": ""}
        else:  # an instance of the package's own classes has their documentation: numpy.r_
            self.add(value, name, "object", "")
            if in_package(type(value), self.package):  # scipy.stats.norm.pdf
                self.instances.setdefault(id(value), (value, set()))[1].add(name)

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
            if not isinstance(raw, type) and isinstance(accessed(cls, member), type):  # pandas.Series.str
                raw = accessed(cls, member)
            for name in names:
                self.add_member(raw, name + "." + member, path, owners)
        if id(cls) in self.entries:
            self.entries[id(cls)]["members"] = sorted(found)

    def add_member(self, raw: Any, name: str, path: str, owners: Sequence[type]) -> None:
        value = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        member = name.rpartition(".")[2]
        if isinstance(value, type):
            self.add_object(value, name)
        elif isinstance(value, PROPERTIES) or type(value).__name__ in ("cached_property", "CachedAttribute"):
            self.add(value, name, "property", path, doc=inherited_doc(value, member, owners))
        elif inspect.isroutine(value) or (callable(value) and hasattr(value, "__name__")):
            bound = not isinstance(raw, staticmethod)
            self.add(value, name, "method", path, bound=bound, doc=inherited_doc(value, member, owners))
        elif isinstance(value, PLAIN) or not own_doc(value):
            if path == name:
                self.entries[name] = {"path": name, "names": {name}, "type": "attribute", "doc": "", "signature": ""}
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
            entry = {"path": path, "names": set(), "type": kind, "doc": doc, "signature": signature(value, kind, bound)}
            self.entries[id(value)] = entry
        entry["names"].add(name)
        if members:
            entry["members"] = list(members)

    def rows(self) -> Iterator[dict[str, Any]]:
        for entry in self.entries.values():
            names = sorted(entry["names"])
            path = entry["path"]
            if not path.startswith(self.package + ".") and path != self.package:
                path = min(names, key=lambda name: (name.count("."), name))
            yield dict(entry, names=names, path=path)


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


def is_public(name: str) -> bool:
    return not any(part.startswith("_") or part in SKIPPED_MODULES for part in name.split("."))


def in_package(cls: type, package: str) -> bool:
    home = getattr(sys.modules.get(str(getattr(cls, "__module__", None))), "__name__", None)
    return isinstance(home, str) and (home == package or home.startswith(package + "."))


def accessed(cls: type, member: str) -> Any:
    try:
        return getattr(cls, member)
    except BaseException:
        return None


def home_of(value: Any) -> str:
    """Where an object says it is defined, if it can be found there; else ""."""
    home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(home, str) or not isinstance(name, str) or "<" in name:
        return ""
    found = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    return home + "." + name if found is value else ""


def own_doc(value: Any) -> str | None:
    doc = getattr(value, "__doc__", None)
    return doc if isinstance(doc, str) and doc != getattr(type(value), "__doc__", None) else None


def inherited_doc(value: Any, member: str, owners: Sequence[type]) -> str:
    for candidate in [value] + [vars(owner)[member] for owner in owners[1:]]:
        doc = clean_doc(getattr(candidate, "__doc__", None))
        if doc and doc != clean_doc(type(candidate).__doc__):
            return doc
    return ""


def clean_doc(doc: Any) -> str:
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def signature(value: Any, kind: str, bound: bool) -> str:
    if kind in ("module", "property", "object"):
        return ""
    try:
        found = inspect.signature(value)
        parameters = list(found.parameters.values())
        if bound and parameters and parameters[0].kind in (0, 1):
            parameters = parameters[1:]
        parameters = [one.replace(annotation=unquoted(one.annotation)) for one in parameters]
        found = found.replace(parameters=parameters, return_annotation=unquoted(found.return_annotation))
        text = ADDRESS.sub("", str(found))
    except BaseException:  # of the __repr__ of a default, which may be anything
        return ""
    return text if len(text) <= MAX_SIGNATURE else ""


def unquoted(annotation: Any) -> Any:
    return Verbatim(annotation) if isinstance(annotation, str) else annotation


def main() -> None:
    request = json.loads(sys.argv[1])
    results = keep_streams()
    sys.path[:0] = request["folders"]
    warnings.simplefilter("ignore")
    importer = Importer(request, results)
    importer.run()
    description = Description(request["package"])
    results.write('{"importing": ""}\n')
    results.flush()
    description.run()
    head = {"python": ".".join(map(str, sys.version_info[:3])), "errors": importer.errors}
    results.write(json.dumps(head) + "\n")
    for row in description.rows():
        results.write(json.dumps(row) + "\n")
    results.write('{"complete": true}\n')
    results.flush()
    os._exit(0)  # no atexit handlers, no waiting for threads of the package


if __name__ == "__main__":
    main()
