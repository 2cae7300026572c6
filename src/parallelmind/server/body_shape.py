"""What a JSON body is made of, counted while its bytes arrive, so that what no request needs is never parsed.

A parser builds an object for every value, and a validator an error for every wrong one: a body of 8 MiB can be four
million of them. Texts cost what they are long, so a body of long texts passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallelmind.server.problems import ApiError

_ONLY_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int32)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_OF_NO_NUMBER = np.ones(256, bool)
_OF_NO_NUMBER[list(b"-+.0123456789eE")] = False


@dataclass(frozen=True)
class ShapeLimits:
    """The most that a body may hold."""

    values: int = 2**18
    """Elements of lists and fields of objects, all together; token ids are most of them."""
    depth: int = 32
    containers: int = 2**14
    """Objects and lists."""
    fields: int = 2**15
    """Of all objects."""
    number: int = 1000
    """Characters of a number."""

    def for_context(self, tokens: int) -> ShapeLimits:
        """The same for a model that takes so many tokens, which a prompt may give as ids."""
        return ShapeLimits(values=max(self.values, min(tokens, 2**20) + 2**16))


class BodyShape:
    """Counts a body that is fed to it piece by piece."""

    def __init__(self, limits: ShapeLimits):
        self._limits = limits
        self._held = b""
        """A backslash at the end of a piece, which belongs to what follows."""
        self._in_string = False
        self._number = 0
        self._depth = self._commas = self._containers = self._fields = 0

    def feed(self, piece: bytes) -> None:
        """Count the next bytes.

        Raises:
            ApiError: the body holds more of something than it may.
        """
        piece = self._held + piece
        unfinished = (len(piece) - len(piece.rstrip(b"\\"))) % 2
        self._held = piece[len(piece) - unfinished :]
        # Without escapes, every other quotation mark begins a text.
        plain = piece[: len(piece) - unfinished]
        if b"\\" in plain:  # to look for two bytes takes ten times as long as for one
            plain = plain.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        parts = plain.split(b'"')
        self._count(b'"'.join(parts[self._in_string :: 2]))
        self._in_string ^= len(parts) % 2 == 0

    def _count(self, outside: bytes) -> None:
        limits = self._limits
        self._commas += outside.count(b",")
        self._fields += outside.count(b":")
        brackets = outside.translate(None, _ONLY_BRACKETS)
        steps = _STEP[np.frombuffer(brackets, np.uint8)]
        self._containers += int((steps > 0).sum())
        deepest = self._depth + int(np.cumsum(steps).max(initial=0))
        self._depth += int(steps.sum())
        if deepest > limits.depth:
            raise _too_much(f"lists and objects {deepest} deep; {limits.depth}")
        if self._containers > limits.containers:
            raise _too_much(f"more than {limits.containers} lists and objects; so many")
        if self._fields > limits.fields:
            raise _too_much(f"more than {limits.fields} fields; so many")
        if self._commas >= limits.values:
            raise _too_much(f"more than {limits.values} values; so many")
        self._check_numbers(outside)

    def _check_numbers(self, outside: bytes) -> None:
        """Reading a number takes longer than its digits grow."""
        most = self._limits.number
        others = np.flatnonzero(_OF_NO_NUMBER[np.frombuffer(outside, np.uint8)])
        if not len(others):
            self._number += len(outside)
            longest = self._number
        else:
            longest = max(self._number + int(others[0]), int(np.diff(others).max(initial=1)) - 1)
            self._number = len(outside) - 1 - int(others[-1])
        if max(longest, self._number) > most:
            raise _too_much(f"a number of more than {most} characters; so many")


def _too_much(what: str) -> ApiError:
    return ApiError(
        400,
        f"the body holds {what} are taken at most: send less of them in one request",
        code="body_too_complex",
        headers={"Connection": "close"},
    )
