"""What is known about the value of an expression, and about the names of a block of code as it runs."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thing:
    """What a dotted name of a package stands for: a module, class, function, or anything else."""

    package: str
    name: str
    bound: bool = False
    """A method that was reached from an instance."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of a class, or of one that is derived from it."""

    package: str
    name: str
    """Of the class."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """None, or no value at all: whoever uses an attribute of it means one of the other values."""


NOTHING = Nothing()
_BUILTINS = frozenset(dir(builtins))
Value = Thing | Instance | Nothing | None
"""None: it may be anything."""


def joined(values: Iterable[Value]) -> Value:
    """What is known of a value that is one of several."""
    found: Value = NOTHING
    for value in values:
        if value is None:
            return None
        if found == NOTHING:
            found = value
        elif value not in (NOTHING, found):
            return None
    return found


class Names:
    """The values of the names of a scope at one place, as changes of those at an earlier one."""

    def __init__(self, before: Names | None = None, *, unset: Value = NOTHING) -> None:
        """`unset` is what a name is that has not got a value yet; one that Python has too may be that."""
        self._before = before
        self.unset: Value = before.unset if before else unset
        self.changes: dict[str, Value] = {}

    def get(self, name: str) -> Value:
        """What the name is."""
        names: Names | None = self
        while names is not None:
            if name in names.changes:
                return names.changes[name]
            names = names._before
        return None if name in _BUILTINS else self.unset

    def has(self, name: str) -> bool:
        names: Names | None = self
        while names is not None:
            if name in names.changes:
                return True
            names = names._before
        return False

    def set(self, name: str, value: Value) -> None:
        self.changes[name] = value

    def take(self, ways: list[Names]) -> None:
        """Go on after one of several ways, each of which began here."""
        found: dict[str, list[Value]] = {}
        for way in ways:
            for name, value in way.changes.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            if len(values) < len(ways):
                values.append(self.get(name))
            self.set(name, joined(values))
