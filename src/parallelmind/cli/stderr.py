"""What a command says on stderr: its log, the problems of a file, and why it failed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from parallelmind.jobs.ranks import Rank

_PATIENCE = 10.0
"""Seconds within which torchrun ends the other processes of a machine when one has failed."""


def say_failed(message: str, *, interrupted: bool = False, environ: Mapping[str, str] = os.environ) -> None:
    """Print why the command ends.

    What a user can cause fails in all processes of torchrun alike. The first one of a machine says it; another gives
    torchrun the time to end it, and speaks only if the failure was its own.
    """
    first = environ.get("LOCAL_RANK", "0") == "0"
    if "TORCHELASTIC_RUN_ID" not in environ or first:
        if not interrupted:
            _tell_torchrun(message, environ)
        print(message, file=sys.stderr)
    elif not interrupted:
        time.sleep(_PATIENCE)
        _tell_torchrun(message, environ)
        print(f"rank {environ.get('RANK', '?')}: {message}", file=sys.stderr)


def _tell_torchrun(message: str, environ: Mapping[str, str]) -> None:
    """Let the table that torchrun prints at the end show the message instead of how to turn tracebacks on."""
    path = environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # What torch.distributed.elastic itself writes, without the second that it takes to import.
        shown = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": shown}), encoding="utf-8")


class _CurrentStderr(logging.StreamHandler[TextIO]):
    # A progress bar replaces sys.stderr while it is shown, so that lines go above it: look at every line.
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(rank: Rank, *, debug: bool) -> None:
    """Send the package's log to stderr, from INFO (DEBUG with `debug`)."""
    handler = _CurrentStderr(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank={rank.rank} %(levelname)s %(message)s"))
    logger = logging.getLogger("parallelmind")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def print_problems(first: Sequence[str], total: int) -> None:
    """Print the first problems to stderr, and how many more there are."""
    for problem in first:
        print(problem, file=sys.stderr)
    if more := total - len(first):
        print(f"{more} more lines have problems", file=sys.stderr)
