"""Which worker this process is: the one place that reads RANK and WORLD_SIZE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from parallelmind.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Rank:
    """Worker `rank` of `world_size`, from 0."""

    rank: int = 0
    world_size: int = 1


SINGLE = Rank()
"""The only worker."""


def current_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """The rank a launcher such as torchrun gave this process; 0 of 1 without a launcher.

    Raises:
        SettingsError: the variables are not numbers, or do not fit each other.
    """
    rank, world_size = _number(environ, "RANK", 0), _number(environ, "WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise SettingsError(f"RANK is {rank} and WORLD_SIZE is {world_size}; RANK must be from 0 to WORLD_SIZE - 1.")
    return Rank(rank, world_size)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    value = environ.get(name, "")
    try:
        return int(value) if value else default
    except ValueError:
        raise SettingsError(f"the environment variable {name} is {value!r}; it must be a whole number.") from None


def local_place(rank: Rank, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number of this worker on its machine, workers on the machine)."""
    local = environ.get("LOCAL_RANK"), environ.get("LOCAL_WORLD_SIZE")
    if local[0] is None or local[1] is None:
        return rank.rank, rank.world_size
    return int(local[0]), int(local[1])
