"""pip, in a process that starts no other: what it would have to build, it cannot have.

    python -I downloader.py PIP ARGUMENTS     the folder of pip, and what pip is to do

Nothing of parallelmind is imported, and the code keeps to Python 3.7. `--only-binary` does not hold for what metadata
names by its address: pip would run its build backend, or a version control program.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from typing import Any, NoReturn

_LOADER = "ld-musl"  # asked for its version, where there is no glibc
_STARTS = ("system", "popen", "execv", "execve", "forkpty")


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts nothing but the system's loader."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        program = args if isinstance(args, (str, bytes)) else next(iter(args), "")
        if not os.path.basename(os.fsdecode(program)).startswith(_LOADER):
            refuse()
        super().__init__(args, *more, **options)


def refuse(*given: Any, **options: Any) -> NoReturn:
    raise PermissionError("only wheels are downloaded, and nothing is built")


def main() -> None:
    subprocess.Popen = Popen  # type: ignore[misc]
    for name in _STARTS:
        setattr(os, name, refuse)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
