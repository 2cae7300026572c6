"""Responses that say what went wrong: read within bounds, whatever the server sends."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

_MAX_BYTES = 2**14
"""As they come: compressed ones may become a thousand times as many."""


class _Cut:
    """The first bytes of a response, of those that come in time."""

    def __init__(self, stream: Any, seconds: float) -> None:
        self._stream = stream
        self._until = time.monotonic() + seconds

    def __iter__(self) -> Iterator[bytes]:
        left = _MAX_BYTES
        for chunk in self._stream:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0 or time.monotonic() > self._until:
                return

    def close(self) -> None:
        self._stream.close()


def bound_error(response: Any, *, seconds: float) -> None:
    """Have the SDK read no more of a response with an error status than an explanation needs, and no longer.

    Called with the response of the SDK's HTTP library before its body is read; a successful one is left alone.
    """
    if not response.is_error:
        return
    # httpx or the library that took its place, as the version of the SDK has it: a stream must be of its own type.
    library = importlib.import_module(type(response).__module__.partition(".")[0])

    class Cut(_Cut, library.SyncByteStream):  # type: ignore[name-defined, misc]
        """The same, of that type."""

    response.stream = Cut(response.stream, seconds)
