"""Branches under one shared text, decoded in parallel; the same as `parallelmind generate`.

    python parallel_generate.py --base_model tiny --prompt_file story.txt --branch "How old is Dan?" --branch "…"

The prompt is main, branch 0; every `--branch` has a branch position of its own, and every forward is given pos2d.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("parallelmind") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from parallelmind.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
