"""What a document asks a reader to do or to look for, with its line, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.conformance.desk import Desk


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a document.

    `run` does what it says at a desk and returns in a few words what was seen, the same words each time.
    """

    line: int
    """Where the block begins in its document."""
    shown: str
    """The block in one line, as spelled."""
    expected: str
    run: Callable[[Desk], str] | None = None
    """None: it is not run, see `differs`."""
    only_printed: bool = False
    """It starts processes of its own, so that `make test` leaves it to `make test-slow`."""
    differs: str = ""
    """Why something else happens than is printed; empty if the same does."""


@dataclass(frozen=True, slots=True)
class Document:
    """One of the five documents."""

    number: str
    title: str
    blocks: tuple[Block, ...]


def by_design(line: int, shown: str, expected: str, why: str, run: Callable[[Desk], str] | None = None) -> Block:
    """A block that differs, and why that is better."""
    return Block(line, shown, expected, run, differs=why)
