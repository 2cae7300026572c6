"""Log lines on stderr, each with the rank."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from parallelmind.jobs.ranks import Rank


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
