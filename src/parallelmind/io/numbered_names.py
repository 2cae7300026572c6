"""The names that a run may take: its own, or the next one if that belongs to another run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from parallelmind.io.compression import packing_of


def numbered(name: str) -> Iterator[str]:
    """Yield name, name_2, name_3, … without end."""
    yield name
    for number in itertools.count(2):
        yield f"{name}_{number}"


def numbered_paths(asked: Path) -> Iterator[Path]:
    """Yield the file that is asked for, then file_2, file_3, …; real paths, since two names of one file must meet."""
    real = Path(os.path.realpath(asked))
    stem, suffix = split_name(real)
    for name in numbered(stem):
        yield real.with_name(name + suffix)


def split_name(path: Path) -> tuple[str, str]:
    """The name of a file before and after the place of a number: ("out", ".jsonl.gz")."""
    packing = packing_of(path) or ""
    inner = Path(path.name.removesuffix(packing))
    return inner.stem, inner.suffix + packing


def spelled_beside(asked: Path, found: Path) -> Path:
    """One of the `numbered_paths`, spelled the way the file was asked for."""
    if found == Path(os.path.realpath(asked)):
        return asked
    beside = asked.with_name(found.name)
    return beside if os.path.realpath(beside) == str(found) else found
