"""What holds for all commands."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_reader_that_ends_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has its lines
    command = [sys.executable, "-m", "parallelmind", "check-workers", "--skip_inference"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
