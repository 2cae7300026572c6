"""Which names modules, classes and instances have, so that a name which is not there is known not to be there.

A namespace is what `getattr` looks through: the names of a module, of each class in a method resolution order, of an
instance. Where a `__getattr__` may add to them, it is asked for names that nobody uses, and for every word of the files
that it is written in and of the package's other namespaces.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import os
import pkgutil
import sys
import time
import types
import warnings
from typing import Any, Iterable, Iterator, Sequence  # noqa: UP035 - as Python 3.7 has them

from .bound import file_of, names_bound_elsewhere, note_assigned
from .description import Description, is_standard, tree_of
from .hooks import (
    UNUSED_NAMES,
    finds_anything,
    hooks_of,
    is_refusal,
    is_text,
    join,
    may_make_names,
    pieces_of,
    words_of,
)
from .importing import DEPRECATIONS, TimeLimit, TooSlow
from .objects import accessed, home_module, home_of, in_package, is_a, is_below, is_public, public_home_of

DEEPEST_FOREIGN = 2
SECONDS_OF_A_HOOK = 20
MOST_OF_ALL_HOOKS = 0.4
"""Of the time that the inspection may take."""
MOST_SAID = 1000

ANY, SOME = "any", "some"
"""What `__getattr__` gives: something for every name; something for names that could not all be tried."""


class Namespaces:
    """The namespaces of a package, each with a number; a name leads to a namespace, an object, or neither.

    Args:
        package: the import name.
        described: the objects that have a text, which get a number each.
        seconds: that the whole inspection may take.
    """

    def __init__(self, package: str, described: Description, seconds: float) -> None:
        self.package = package
        self.described = described
        self.numbers = described.numbers()
        self.own: set[int] = set()
        self.places: dict[int, int] = {}
        self.spaces: list[dict[str, Any]] = []
        self.alive: list[Any] = []
        self.hooked: list[tuple[Any, dict[str, Any], list[Any]]] = []
        self.trees: dict[str, dict[str, set[str]]] = {}
        self.deadline = time.monotonic() + seconds * MOST_OF_ALL_HOOKS

    def run(self, finders: Sequence[Any]) -> None:
        """`finders`: the ways of finding modules that the package has added to Python's own."""
        modules = [(name, value) for name, value in sorted(sys.modules.copy().items()) if is_below(name, self.package)]
        self.own = {id(value) for _, value in modules}  # also those that have another name: requests.packages.urllib3
        for name, module in modules:
            if is_a(module, types.ModuleType):
                number = self.module(module)
                self.spaces[number]["modules"].append(name)
        words = {name for space in self.spaces for name in space["names"]}
        for value, space, hooks in self.hooked:
            self.ask(value, space, hooks, words)
        for space in self.spaces if any(finds_anything(finder, self.package) for finder in finders) else ():
            if space["kind"] == "module" and not space["open"]:
                space["open"] = SOME

    def rows(self) -> Iterator[dict[str, Any]]:
        for number, space in enumerate(self.spaces):
            yield dict({name: content for name, content in space.items() if content}, id=number)

    def new(self, value: Any, kind: str, name: str) -> dict[str, Any]:
        space: dict[str, Any] = {"kind": kind, "name": name, "names": {}, "open": ""}
        space.update(said={}, refused={}, raises=[])
        self.places[id(value)] = len(self.spaces)
        self.spaces.append(space)
        self.alive.append(value)
        return space

    def module(self, module: types.ModuleType) -> int:
        if id(module) in self.places:
            return self.places[id(module)]
        space = self.new(module, "module", module.__name__)
        space["modules"] = []
        for name, value in sorted(vars(module).items()):
            space["names"][name] = self.target(value, module.__name__ + "." + name)
        space["files"] = sorted(files_of(module) | (names_bound_elsewhere(module) - set(space["names"])))
        self.add_listed(module, space)
        self.add_module_hooks(module, space)
        return self.places[id(module)]

    def add_listed(self, module: types.ModuleType, space: dict[str, Any]) -> None:
        """Names that a module only says it has: they are asked for."""
        listed = getattr(module, "__all__", None)
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, (list, tuple)) else []
        with contextlib.suppress(BaseException):  # of a lazy module that lacks what it needs
            names += [name for name in dir(module) if isinstance(name, str)]
        self.add_asked(module, space, [name for name in names if name not in space["names"]])

    def add_asked(self, value: Any, space: dict[str, Any], names: Iterable[str], listed: bool = True) -> None:
        """Note what `getattr` gives for each name, which of those that are listed raise, and what it warns of."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for name in names:
                del said[:]
                try:
                    found = getattr(value, name)
                except (TooSlow, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    if is_refusal(error):
                        space["refused"][name] = str(error)[:MOST_SAID]
                    elif listed or not isinstance(error, AttributeError):
                        space["raises"].append(name)
                    continue
                if name not in space["names"]:
                    full = space["name"] + "." + name
                    if not listed and space["kind"] == "module" and is_below(full, self.package) and is_public(full):
                        self.describe(found, full)
                    space["names"][name] = self.target(found, full)
                for one in said:
                    if issubclass(one.category, DEPRECATIONS):
                        space["said"].setdefault(name, str(one.message)[:MOST_SAID])

    def describe(self, value: Any, name: str) -> None:
        """Give an object of the package a number that has none, as no name led to it so far."""
        if is_a(value, types.ModuleType) or id(value) in self.numbers or not is_below(home_module(value), self.package):
            return
        before = len(self.described.entries)
        with contextlib.suppress(Exception):  # of a proxy
            self.described.add_late(value, name)
        if len(self.described.entries) > before:
            self.numbers = self.described.numbers()
            if is_a(value, type) and id(value) in self.places and id(value) in self.numbers:
                self.spaces[self.places[id(value)]]["object"] = self.numbers[id(value)]

    def target(self, value: Any, name: str) -> str:
        """Where a name leads: "s" and a namespace, "o" and an object, "=" and where it is defined, or ""."""
        try:
            return self.found_target(value, name)
        except Exception:  # of a proxy that stands for nothing yet
            return ""

    def found_target(self, value: Any, name: str) -> str:
        if is_a(value, types.ModuleType):
            home = str(getattr(value, "__name__", ""))
            if id(value) in self.own or is_below(home, self.package):
                return "s" + str(self.module(value))
            is_offered = is_public(name) and name.count(".") <= DEEPEST_FOREIGN and not is_standard(home)
            return "s" + str(self.foreign(value)) if is_offered else "=" + home
        if is_a(value, type):
            if in_package(value, self.package) or id(value) in self.numbers:
                return "s" + str(self.class_(value))
            return "=" + public_home_of(value)
        number = self.numbers.get(id(value), self.numbers.get(name))
        if self.is_instance(value):
            return "s" + str(self.instance(value, number))
        if number is not None:
            return "o" + str(number)
        home = public_home_of(value)
        return "=" + home if home else ""

    def is_instance(self, value: Any) -> bool:
        return in_package(type(value), self.package) and not is_a(value, enum.Enum)

    def class_(self, cls: type) -> int:
        if id(cls) in self.places:
            return self.places[id(cls)]
        space = self.new(cls, "class", home_of(cls) or home_module(cls) + "." + cls.__qualname__)
        if id(cls) in self.numbers:
            space["object"] = self.numbers[id(cls)]
        home = home_of(cls)
        for name, raw in sorted(vars(cls).items()):
            value = raw.__func__ if is_a(raw, (classmethod, staticmethod)) else raw
            if not is_a(value, type) and id(value) not in self.numbers and in_package(cls, self.package):
                found = accessed(cls, name)
                value = found if is_a(found, type) and name != "__class__" else value
            space["names"][name] = "" if name.startswith("__") else self.member(value, home + "." + name)
        space["instance"] = sorted(self.instance_names(cls) - set(space["names"]))
        if in_package(cls, self.package):
            of_meta = [name for base in type.mro(type(cls)) if in_package(base, self.package) for name in vars(base)]
            self.add_asked(cls, space, [one for one in (*space["names"], *of_meta) if not one.startswith("__")])
            hooks = list(hooks_of(type(cls), type))
            self.add_hooks(cls, space, [hook for hook in hooks if home_module(hook) != "enum"])
            space["dynamic"] = any(map(may_make_names, hooks_of(cls, object)))
        space["bases"] = [self.class_(base) for base in inspect.getmro(cls)[1:] if base is not object]
        space["meta"] = [self.class_(base) for base in type.mro(type(cls)) if base not in (type, object)]
        return self.places[id(cls)]

    def member(self, value: Any, name: str) -> str:
        """Of a class; what is no class or described object there leads nowhere."""
        if is_a(value, type):
            return self.target(value, name)
        if id(value) in self.numbers:
            return "o" + str(self.numbers[id(value)]) if self.is_instance(value) else self.target(value, name)
        return "o" + str(self.numbers[name]) if name in self.numbers else ""

    def foreign(self, module: types.ModuleType) -> int:
        """Of a module of another package that this one offers: its names, and no more."""
        if id(module) in self.places:
            return self.places[id(module)]
        space = self.new(module, "module", module.__name__)
        for name, value in sorted(vars(module).items()):
            number = self.numbers.get(id(value))
            space["names"][name] = "o" + str(number) if number is not None else ""
        space["files"] = sorted(files_of(module))
        self.add_module_hooks(module, space)
        return self.places[id(module)]

    def instance(self, value: Any, number: int | None) -> int:
        if id(value) in self.places:
            return self.places[id(value)]
        cls = type(value)
        space = self.new(value, "instance", home_of(cls))
        if number is not None:
            space["object"] = number
        try:
            names = list(vars(value))
        except BaseException:  # of a __dict__ that is a property
            names = []
        space["names"] = dict.fromkeys(sorted(filter(is_text, names)), "")
        self.add_hooks(value, space, list(hooks_of(cls, object)))
        space["bases"] = [self.class_(base) for base in inspect.getmro(cls) if base is not object]
        return self.places[id(value)]

    def add_module_hooks(self, module: types.ModuleType, space: dict[str, Any]) -> None:
        hooks = [vars(module).get("__getattr__"), *hooks_of(type(module), types.ModuleType)]
        self.add_hooks(module, space, [hook for hook in hooks if hook is not None])

    def add_hooks(self, value: Any, space: dict[str, Any], hooks: list[Any]) -> None:
        if hooks:
            space["open"] = SOME  # until it has been asked
            self.hooked.append((value, space, hooks))

    def ask(self, value: Any, space: dict[str, Any], hooks: list[Any], words: set[str]) -> None:
        """Ask a `__getattr__` for names that it cannot know, and then for all that it may."""
        seconds = min(SECONDS_OF_A_HOOK, int(self.deadline - time.monotonic()))
        if seconds < 1:
            return
        says_so_of_all = False
        try:
            with TimeLimit(seconds):
                for name in UNUSED_NAMES:
                    try:
                        getattr(value, name)
                    except AttributeError as error:
                        says_so_of_all = is_refusal(error)
                        continue
                    except (TooSlow, KeyboardInterrupt):
                        raise
                    except BaseException:
                        return
                    space["open"] = ANY
                    return
                asked = words | words_of(value, hooks)
                pieces = {piece for hook in hooks for piece in pieces_of(hook)}
                asked |= {joined for piece in pieces for word in words_of(value, hooks) for joined in join(piece, word)}
                known = set(space["names"]) | {name for base in self.all_bases(space) for name in base["names"]}
                self.add_asked(value, space, sorted(asked - known), listed=False)
                if says_so_of_all:
                    space["refused"] = {}
                space["open"], space["asked"] = SOME if pieces else "", len(asked)
        except TooSlow:
            return

    def all_bases(self, space: dict[str, Any]) -> list[dict[str, Any]]:
        return [self.spaces[number] for number in (*space.get("bases", ()), *space.get("meta", ()))]

    def instance_names(self, cls: type) -> set[str]:
        """What instances of a class have and the class has not: what is assigned to self, and fields."""
        names = set(self.assigned(cls).get(cls.__qualname__, ()))
        for field_names in ("__annotations__", "__dataclass_fields__", "model_fields", "__fields__"):
            fields = vars(cls).get(field_names)
            names.update(fields if isinstance(fields, dict) else ())
        for field in vars(cls).get("__attrs_attrs__") or ():
            names.add(getattr(field, "name", ""))
        return {name for name in names if is_text(name) and name}

    def assigned(self, cls: type) -> dict[str, set[str]]:
        """By class, the names that the methods in a class's file assign to their first parameter."""
        path = file_of(cls)
        if path not in self.trees:
            self.trees[path] = {}
            tree = tree_of(path)
            if tree is not None:
                note_assigned(tree, "", self.trees[path])
        return self.trees[path]


def files_of(module: types.ModuleType) -> set[str]:
    """The names that can be imported below a package, whether or not that works."""
    try:
        folders = [folder for folder in getattr(module, "__path__", ()) if isinstance(folder, str)]
        found = {name for _, name, _ in pkgutil.iter_modules(folders)}
        for folder in folders:
            with os.scandir(folder) as entries:
                found.update(one.name for one in entries if one.is_dir() and one.name.isidentifier())
    except Exception:
        return set()
    return found - {"__pycache__"}
