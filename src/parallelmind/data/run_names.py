"""Names for what is to stand beside something of the same name instead of taking its place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

__all__ = ["numbered"]


def numbered(name: str) -> Iterator[str]:
    """`name`, `name_2`, `name_3`, … without end."""
    yield name
    for number in count(2):
        yield f"{name}_{number}"
