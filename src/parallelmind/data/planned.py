"""What planning knows of a sample: its lengths, without its tokens."""

from __future__ import annotations

from typing import NamedTuple


class PlannedBranch(NamedTuple):
    """A branch of a sample, without its tokens."""

    sample: int
    """Its place in the store."""
    place: int
    """Its place in the sample."""
    number: int
    tokens: int
    supervised: int
    """How many of its tokens are supervised."""


class PlannedSample(NamedTuple):
    """A sample without its tokens."""

    where: str
    loose: bool
    main_tokens: int
    branches: list[PlannedBranch]
