"""Many cases of one test: `make test` runs a few that differ most, `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], kept: int = 1) -> list[Any]:
    """The cases for `parametrize`, of which those behind the first `kept` are slow; a tuple is several arguments."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if place < kept else pytest.mark.slow)
        for place, case in enumerate(cases)
    ]
