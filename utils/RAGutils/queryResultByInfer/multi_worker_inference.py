"""Answer questions over contexts with many workers; the same as `parallelmind answer`, alone or under torchrun.

Also the documented import path: `from multi_worker_inference import QueryBasedInference`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from parallelmind.cli.main import main
from parallelmind.rag.backends import QueryBasedInference

__all__ = ["QueryBasedInference"]

if __name__ == "__main__":
    sys.exit(main(["answer", *sys.argv[1:]]))
