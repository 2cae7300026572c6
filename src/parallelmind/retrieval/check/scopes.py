"""Scopes of a file, and what a name in them stands for."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable

from parallelmind.retrieval.check.survey import Survey
from parallelmind.retrieval.check.values import NOTHING, Instance, Names, Thing, Value, joined


class Scope:
    """A module, class or function while its statements are gone through."""

    def __init__(self, parent: Scope | None, own: set[str], *, is_class: bool = False) -> None:
        """`own` are the names that it gives values to."""
        self.parent, self.own, self.is_class = parent, own, is_class
        self.names = Names(unset=None if is_class else NOTHING)
        """As they are now."""
        self.ever: dict[str, Value] = {}
        """What is known of each whenever it is asked for, as functions within do."""
        self.stars: list[Thing | None] = []
        """Modules of which all names were imported; None is one that is not known."""
        self.later: deque[Callable[[], None]] = self._root.later if parent else deque()
        """Bodies of functions, which run when all around them has its values."""

    @property
    def _root(self) -> Scope:
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def bind(self, name: str, value: Value) -> None:
        """Give a name a value, here and now."""
        self.names.set(name, value)
        self.ever[name] = value if name not in self.ever else joined((self.ever[name], value))

    def forget(self, names: set[str]) -> None:
        """From here on nobody knows what these names are."""
        for name in names:
            self.names.set(name, None)


def resolve(scope: Scope, name: str, survey: Survey, exported: Callable[[Thing, str], bool]) -> Value:
    """What a name is where a scope uses it; `exported` tells whether a module has a name."""
    if name in survey.rebound:
        return None
    value = _found(scope, name, exported)
    return None if isinstance(value, Instance) and name in survey.narrowed else value


def _found(scope: Scope, name: str, exported: Callable[[Thing, str], bool]) -> Value:
    here: Scope | None = scope
    is_now = True
    while here is not None:
        is_seen = is_now or not here.is_class  # what a class holds is not seen from the functions in it
        if is_seen and name in here.own:
            value = here.names.get(name) if is_now else here.ever.get(name, NOTHING)
            is_certain = here.names.has(name) if is_now else name in here.ever
            if is_certain:
                return value
            if not here.is_class:
                return None
        if here.stars and is_seen:
            return _from_stars(here, name, exported)
        # Of a class, what is around it runs at the same time.
        is_now = is_now and here.is_class
        here = here.parent
    return None


def _from_stars(scope: Scope, name: str, exported: Callable[[Thing, str], bool]) -> Value:
    if len(scope.stars) > 1 or (module := scope.stars[0]) is None:
        return None
    return Thing(module.package, f"{module.name}.{name}") if exported(module, name) else None


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.arg]:
    """All parameters of a function."""
    given = node.args
    several = [one for one in (given.vararg, given.kwarg) if one is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
