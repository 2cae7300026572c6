"""One server with the bundled model for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parallelmind import Engine
from tests.server.serving import Running, running, tiny_engine


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running(tiny_engine) as found:
        yield found


@pytest.fixture(scope="session")
def offline() -> Engine:
    """The engine alone, to compare with."""
    return tiny_engine()
