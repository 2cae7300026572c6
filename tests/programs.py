"""Programs and command lines in this process, which has imported what takes long already."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def command_line(*words: object, stdin: str | bytes | None = None) -> Iterator[None]:
    """What a program finds in this block: its name and arguments, and what is typed, or what is piped into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        if stdin is not None:
            is_bytes = isinstance(stdin, bytes)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)) if is_bytes else io.StringIO(stdin))
        yield


def run_program(path: str | Path, *arguments: object, stdin: str = "") -> int | str | None:
    """Run a Python file as `python FILE …` does, also with its folder first on the path; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch, command_line(path, *arguments, stdin=stdin):
        patch.syspath_prepend(str(Path(path).resolve().parent))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    return ended.value.code
