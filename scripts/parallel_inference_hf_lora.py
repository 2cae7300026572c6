"""Batch parallel inference; the same as `parallelmind batch`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from parallelmind.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["batch", *sys.argv[1:]]))
