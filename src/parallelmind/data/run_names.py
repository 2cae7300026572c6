"""The names that a run may take: its own, or the next one if that belongs to another run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

__all__ = ["numbered"]


def numbered(name: str) -> Iterator[str]:
    """Yield name, name_2, name_3, … without end."""
    yield name
    for number in itertools.count(2):
        yield f"{name}_{number}"
