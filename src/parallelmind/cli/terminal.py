"""A terminal that a model's output cannot control, and a Ctrl-C that stops an answer instead of the program."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

NO_ANSWER = "(the model answered nothing)"
"""What stands in the place of an empty answer, so that it is not taken for a failure of the program."""

# Control characters (C0 but tab and line end, DEL, C1) could move the cursor, set the title or answer in the user's
# name; bidirectional overrides could make a line read as another; a lone surrogate cannot be printed at all.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PICTURES = 0x2400  # U+2400…U+241F show U+0000…U+001F
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"


def printable(text: str) -> str:
    """The text with control characters shown instead of obeyed: the escape character as ␛, and so on."""
    return _UNSAFE.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return "" if found[0] == "\r" else chr(_PICTURES + code)
    return _DELETE_PICTURE if code == _DELETE else f"‹{code:x}›"


def tolerate_any_text() -> None:
    """Let no byte on stdin and no character on stdout end the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class CtrlC:
    """Whether Ctrl-C was pressed."""

    pressed = False

    def cuts(self, pieces: Generator[T]) -> Generator[T]:
        """The pieces until Ctrl-C; then the generator is closed."""
        with closing(pieces):
            while not self.pressed and (piece := next(pieces, None)) is not None:
                yield piece


@contextmanager
def stoppable() -> Iterator[CtrlC]:
    """Note the first Ctrl-C instead of raising, so that the engine is left between two steps; a second one raises."""
    ctrl_c = CtrlC()

    def press(signum: int, frame: FrameType | None) -> None:
        if ctrl_c.pressed:
            raise KeyboardInterrupt
        ctrl_c.pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)
