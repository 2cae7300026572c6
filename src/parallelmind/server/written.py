"""JSON as answers have it, whole or in pieces that each take little time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_SLICE = 64


def written(content: Any) -> bytes:
    """The JSON of a value, in UTF-8."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def pieces(content: Any) -> Iterator[bytes]:
    """The same in pieces: lists are written some elements at a time."""
    if isinstance(content, dict) and content:
        before = b"{"
        for name, value in content.items():
            yield before + written(name) + b":"
            yield from pieces(value)
            before = b","
        yield b"}"
    elif isinstance(content, list) and len(content) > _SLICE:
        before = b"["
        for start in range(0, len(content), _SLICE):
            yield before + written(content[start : start + _SLICE])[1:-1]
            before = b","
        yield b"]"
    else:
        yield written(content)
