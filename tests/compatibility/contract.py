"""What the documents promise, as data: commands, flags, imports, files. The tests beside it prove each promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_PROVED = "proved_promises"


@dataclass(frozen=True, slots=True)
class Promise:
    """One flag, command, import or file format, spelled as documented."""

    name: str
    meaning: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The promises of one command or interface."""

    key: str
    title: str
    promises: tuple[Promise, ...]

    def names(self) -> set[str]:
        return {promise.name for promise in self.promises}


SECTIONS: dict[str, Section] = {}


def section(key: str, title: str, *promises: Promise) -> None:
    """Add a section; called by the modules of `tests/compatibility/promises`."""
    assert key not in SECTIONS, key
    names = [promise.name for promise in promises]
    assert len(names) == len(set(names)), f"{key} promises something twice"
    SECTIONS[key] = Section(key, title, promises)


def proves(key: str, *names: str) -> Callable[[F], F]:
    """Mark a test as the proof of promises of one section; its docstring's first paragraph goes into the document."""
    unknown = set(names) - SECTIONS[key].names()
    assert not unknown, f"{key} does not promise {sorted(unknown)}"

    def mark(test: F) -> F:
        assert test.__doc__, f"{test.__name__} needs a docstring: it goes into docs/compatibility.md"
        setattr(test, _PROVED, [*proofs_of(test), *((key, name) for name in names)])
        return test

    return mark


def proofs_of(test: Callable[..., Any]) -> list[tuple[str, str]]:
    """(section, name) of the promises that a test proves."""
    return list(getattr(test, _PROVED, []))
