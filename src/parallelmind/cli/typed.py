"""Commands and paths as one would type them here, for the commands that a demo shows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def typed_command() -> str:
    """How this program was started, so that what is shown can be copied: `.venv/bin/parallelmind` where it is so."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m parallelmind"
    return program.name if shutil.which(program.name) == str(program) else typed_path(program)


def typed_path(path: Path) -> str:
    """Relative to the current folder if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
