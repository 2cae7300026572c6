"""The server of the service's tests."""

from tests.server.conftest import server as server
