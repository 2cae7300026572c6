"""Contexts for a file of queries; the same as `parallelmind contexts`."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from parallelmind.cli.main import main
except ModuleNotFoundError as error:
    if error.name != "parallelmind":
        raise
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))
    from parallelmind.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["contexts", *sys.argv[1:]]))
