"""Many cases of one test: `make test` runs a few that differ most, `make test-slow` the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], kept: int = 1) -> list[Any]:
    """The cases for `parametrize`, of which those behind the first `kept` are slow; a tuple is several arguments."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if place < kept else pytest.mark.slow)
        for place, case in enumerate(cases)
    ]


def spread(*axes: Iterable[Any], one_in: int = 3) -> list[Any]:
    """All combinations for `parametrize`, of which those off the diagonals are slow.

    Every value of every axis stays in `make test`, with one in so many of the others' values.
    """
    numbered = [list(enumerate(axis)) for axis in axes]
    cases = []
    for case in itertools.product(*numbered):
        kept = sum(place for place, _ in case) % one_in == 0
        cases.append(pytest.param(*(value for _, value in case), marks=() if kept else pytest.mark.slow))
    return cases
