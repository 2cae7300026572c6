"""Disks that fail, and processes that end, while something is written."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """In this block no file can grow beyond so many bytes, as where a disk or a quota is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def interrupted_at(path: Path, *, replaced: bool = False) -> Iterator[None]:
    """In this block the process ends as it puts a new file in the place of `path`: before, or when it is replaced."""
    replace = Path.replace

    def end(new: Path, target: Path) -> Path:
        if Path(target) != path:
            return replace(new, target)
        if replaced:
            replace(new, target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:  # noqa: PT012
        patch.setattr(Path, "replace", end)
        yield
