"""What was wrong with lines of a file, for stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_problems(first: Sequence[str], total: int) -> None:
    """Print the first problems to stderr, and how many more there are."""
    for problem in first:
        print(problem, file=sys.stderr)
    if more := total - len(first):
        print(f"{more} more lines have problems", file=sys.stderr)
