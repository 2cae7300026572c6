"""A small model from scratch on parallel data; the same as `parallelmind train --task pretrain`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from parallelmind.cli.main import main
from parallelmind.columnar import auto_pair_indices

__all__ = ["auto_pair_indices"]

if __name__ == "__main__":
    sys.exit(main(["train", "--task", "pretrain", *sys.argv[1:]]))
